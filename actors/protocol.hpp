#pragma once
#include "core/error.hpp"
#include "experience/trajectory.hpp"
#include <caf/all.hpp>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

// Every message, every interface and every type id of the control plane. Tokens, texts and weights travel elsewhere: no
// message here passes 64 KiB. A change of any field changes `protocol_hash`, which `join_request` carries.

enum class worker_role : std::uint8_t { rollout, learner, reward };
constexpr const char* name_of(worker_role r) noexcept {
  return r == worker_role::rollout ? "rollout" : r == worker_role::learner ? "learner" : "reward";
}

/// A program asks to take part. Everything but pid, host and isa must equal the run's own values.
struct join_request {
  std::uint64_t protocol = 0;
  std::string secret, build, numerics; // numerics: which bits this program's kernels make
  std::string host, isa;
  std::int64_t pid = 0;
};

/// What a worker is and all that it needs to begin.
struct join_answer {
  worker_role role = worker_role::rollout;
  std::uint32_t rank = 0;
  std::string config_toml;         // resolved; paths are absolute
  std::string model_config_json;   // config.json's text, for a worker that has no model directory
  std::string experience_endpoint; // rollout: where finished groups go
  std::uint32_t ranks = 1;         // processes that share this worker's model; it is number rank % ranks of them
};

/// A worker that has joined, as `enlist` names it. id: unique in a run, a restarted worker has a new one.
struct worker_info {
  worker_role role = worker_role::rollout;
  std::uint32_t rank = 0;
  std::string host;
  std::int64_t pid = 0;
  std::string batch_endpoint;     // learner: where batches go
  std::string rank_endpoint = {}; // where the other ranks of its model reach it; empty: it has the model alone
};

/// Where the ranks of a model are, this one's among them, in rank order.
struct rank_peers {
  std::vector<std::string> endpoints;
};

/// A worker that works with text brings the run's tokenizer and chat template, packed, in parts.
struct fetch_texts {
  std::uint64_t from = 0; // bytes that it has
};
struct texts_part {
  std::uint64_t total = 0;
  std::string bytes;
};

/// One group to be made: the whole of what its samples depend on, with the weights of `version`.
struct generate_group {
  group_key key;
  weights_version version;
  std::uint64_t source = 0;
  std::vector<std::int32_t> prompt_ids;
};

/// What is known of a group once it is scored; its tokens stay with the reward.
struct group_scored {
  group_key key;
  std::vector<double> rewards;        // [samples]; empty when the group was dropped
  std::vector<std::uint32_t> lengths; // [samples] response tokens
  std::uint32_t prompt_length = 0;
  std::uint32_t oldest_version = 0; // step of the oldest weights that drew a token
  double seconds = 0;               // of scoring
  std::string dropped;              // why it was dropped; empty: it was not
};

/// Takes the groups of a step, in this order, to the learner.
struct ship_batch {
  std::uint32_t step = 0;
  std::vector<std::uint32_t> indices;
  std::string endpoint; // the learner's; empty in one process
};
struct batch_shipped {
  std::uint32_t step = 0;
  double advantage_seconds = 0, advantage_mean = 0; // mean over tokens
};

/// Restores the run: the newest whole checkpoint up to `target`, then recorded steps up to `target`.
/// `target` 2^32 - 1: the newest whole checkpoint alone. `only`: that checkpoint directory and no other.
struct restore_learner {
  std::uint32_t incarnation = 0, target = 0;
  std::string only;
};
struct learner_restored {
  weights_version version;
  std::vector<std::string> passed_over; // a line for each damaged checkpoint
};

struct train_step {
  std::uint32_t step = 0;
};
struct step_trained {
  weights_version version;
  std::vector<std::pair<std::string, double>> metrics;
};

struct save_checkpoint {
  std::uint32_t step = 0;
};
struct checkpoint_saved {
  std::uint32_t step = 0;
};

struct publish_weights {
  weights_version version;
};
struct weights_published {
  weights_version version;
  std::string endpoint;
};
struct fetch_weights {
  weights_version version;
  std::string endpoint;
};

/// A version reached one receiver (fetch) or all of them (sync: bytes added up, the longest time).
struct weights_fetched {
  weights_version version;
  std::uint64_t bytes = 0;
  double seconds = 0;
};
struct sync_weights {
  weights_version version;
};

/// Rollout `id` holds a version and may be given groups for it.
struct rollout_holds {
  std::uint64_t id = 0;
  weights_version version;
};
/// Rollout `id` could not take a version.
struct rollout_failed {
  std::uint64_t id = 0;
  std::string text;
};

/// The first cause of a worker's end, in one line.
struct worker_failed {
  worker_role role = worker_role::rollout;
  std::uint32_t rank = 0;
  std::string host, text;
  std::uint8_t code = 0;
};
/// A process that this machine's supervisor started is gone.
struct worker_exited {
  std::int64_t pid = 0;
  std::string how;
};
/// A step is to end and be saved, then the run ends.
struct stop_run {
  std::uint32_t signal = 0;
};
/// What a rollout does now.
struct rollout_status {
  std::uint32_t groups = 0;
  weights_version version;
};

// clang-format off
template <class I> typename I::result_type inspect(I& f, weights_version& x) { return f(caf::meta::type_name("weights_version"), x.incarnation, x.step); }
template <class I> typename I::result_type inspect(I& f, group_key& x) { return f(caf::meta::type_name("group_key"), x.step, x.index, x.validation); }
template <class I> typename I::result_type inspect(I& f, join_request& x) { return f(caf::meta::type_name("join_request"), x.protocol, x.secret, x.build, x.numerics, x.host, x.isa, x.pid); }
template <class I> typename I::result_type inspect(I& f, join_answer& x) { return f(caf::meta::type_name("join_answer"), x.role, x.rank, x.config_toml, x.model_config_json, x.experience_endpoint, x.ranks); }
template <class I> typename I::result_type inspect(I& f, worker_info& x) { return f(caf::meta::type_name("worker_info"), x.role, x.rank, x.host, x.pid, x.batch_endpoint, x.rank_endpoint); }
template <class I> typename I::result_type inspect(I& f, rank_peers& x) { return f(caf::meta::type_name("rank_peers"), x.endpoints); }
template <class I> typename I::result_type inspect(I& f, fetch_texts& x) { return f(caf::meta::type_name("fetch_texts"), x.from); }
template <class I> typename I::result_type inspect(I& f, texts_part& x) { return f(caf::meta::type_name("texts_part"), x.total, x.bytes); }
template <class I> typename I::result_type inspect(I& f, generate_group& x) { return f(caf::meta::type_name("generate_group"), x.key, x.version, x.source, x.prompt_ids); }
template <class I> typename I::result_type inspect(I& f, group_scored& x) { return f(caf::meta::type_name("group_scored"), x.key, x.rewards, x.lengths, x.prompt_length, x.oldest_version, x.seconds, x.dropped); }
template <class I> typename I::result_type inspect(I& f, ship_batch& x) { return f(caf::meta::type_name("ship_batch"), x.step, x.indices, x.endpoint); }
template <class I> typename I::result_type inspect(I& f, batch_shipped& x) { return f(caf::meta::type_name("batch_shipped"), x.step, x.advantage_seconds, x.advantage_mean); }
template <class I> typename I::result_type inspect(I& f, restore_learner& x) { return f(caf::meta::type_name("restore_learner"), x.incarnation, x.target, x.only); }
template <class I> typename I::result_type inspect(I& f, learner_restored& x) { return f(caf::meta::type_name("learner_restored"), x.version, x.passed_over); }
template <class I> typename I::result_type inspect(I& f, train_step& x) { return f(caf::meta::type_name("train_step"), x.step); }
template <class I> typename I::result_type inspect(I& f, step_trained& x) { return f(caf::meta::type_name("step_trained"), x.version, x.metrics); }
template <class I> typename I::result_type inspect(I& f, save_checkpoint& x) { return f(caf::meta::type_name("save_checkpoint"), x.step); }
template <class I> typename I::result_type inspect(I& f, checkpoint_saved& x) { return f(caf::meta::type_name("checkpoint_saved"), x.step); }
template <class I> typename I::result_type inspect(I& f, publish_weights& x) { return f(caf::meta::type_name("publish_weights"), x.version); }
template <class I> typename I::result_type inspect(I& f, weights_published& x) { return f(caf::meta::type_name("weights_published"), x.version, x.endpoint); }
template <class I> typename I::result_type inspect(I& f, fetch_weights& x) { return f(caf::meta::type_name("fetch_weights"), x.version, x.endpoint); }
template <class I> typename I::result_type inspect(I& f, weights_fetched& x) { return f(caf::meta::type_name("weights_fetched"), x.version, x.bytes, x.seconds); }
template <class I> typename I::result_type inspect(I& f, sync_weights& x) { return f(caf::meta::type_name("sync_weights"), x.version); }
template <class I> typename I::result_type inspect(I& f, rollout_holds& x) { return f(caf::meta::type_name("rollout_holds"), x.id, x.version); }
template <class I> typename I::result_type inspect(I& f, rollout_failed& x) { return f(caf::meta::type_name("rollout_failed"), x.id, x.text); }
template <class I> typename I::result_type inspect(I& f, worker_failed& x) { return f(caf::meta::type_name("worker_failed"), x.role, x.rank, x.host, x.text, x.code); }
template <class I> typename I::result_type inspect(I& f, worker_exited& x) { return f(caf::meta::type_name("worker_exited"), x.pid, x.how); }
template <class I> typename I::result_type inspect(I& f, stop_run& x) { return f(caf::meta::type_name("stop_run"), x.signal); }
template <class I> typename I::result_type inspect(I& f, rollout_status& x) { return f(caf::meta::type_name("rollout_status"), x.groups, x.version); }
// clang-format on

/// Makes groups, one pass of the model a message to itself. Spawn detached: a pass blocks.
using rollout_actor = caf::typed_actor<
    // A group to make; it goes to the reward over the experience channel.
    caf::reacts_to<generate_group>,
    // Brings the model to a version, as soon as no group is under way.
    caf::replies_to<fetch_weights>::with<weights_fetched>,
    // What it does now; answered between two passes.
    caf::replies_to<caf::get_atom>::with<rollout_status>,
    // To itself: one more pass.
    caf::reacts_to<caf::tick_atom>,
    // To itself, from the threads that serve others or train: something is new there.
    caf::reacts_to<caf::add_atom>>;

/// Updates the policy. Spawn detached: a step blocks.
using learner_actor = caf::typed_actor<
    // Loads a checkpoint and redoes recorded steps, one a message.
    caf::replies_to<restore_learner>::with<learner_restored>,
    // One step on the batch that came over the experience channel.
    caf::replies_to<train_step>::with<step_trained>,
    // Writes `checkpoints/step-N`, complete or not at all.
    caf::replies_to<save_checkpoint>::with<checkpoint_saved>,
    // Offers the current weights.
    caf::replies_to<publish_weights>::with<weights_published>,
    // To itself: a batch arrived, or a recorded step is to be redone.
    caf::reacts_to<caf::tick_atom>>;

/// Scores groups and holds them until their step is trained. Spawn detached: a reward may block.
using reward_actor = caf::typed_actor<
    // Records the step's rollouts, flushes them, and sends them to the learner.
    caf::replies_to<ship_batch>::with<batch_shipped>,
    // The step is trained: its groups may go.
    caf::reacts_to<step_trained>,
    // To itself, from the experience channel: groups arrived.
    caf::reacts_to<caf::tick_atom>>;

/// A process that has a part of a model: of several, the first one's rollout or learner speaks for all. Ends its process.
using rank_actor = caf::typed_actor<
    // All ranks of the model are there.
    caf::reacts_to<rank_peers>>;

/// Takes versions of the weights from the learner to every rollout.
using weight_sync_actor = caf::typed_actor<
    // The learner, also one that was started again.
    caf::reacts_to<learner_actor>,
    // A rollout by its id; it fetches the current version at once.
    caf::reacts_to<std::uint64_t, rollout_actor>,
    // Publishes a version; answered when every rollout has it or is gone.
    caf::replies_to<sync_weights>::with<weights_fetched>>;

/// Decides who does what, and when. Never blocks.
using coordinator_actor = caf::typed_actor<
    // A program asks to take part: gets a role, or an error that names what differs.
    caf::replies_to<join_request>::with<join_answer>,
    // From one that works with text.
    caf::replies_to<fetch_texts>::with<texts_part>,
    // Workers that are ready.
    caf::reacts_to<worker_info, rollout_actor>, caf::reacts_to<worker_info, learner_actor>,
    // One of several ranks of a worker, which then waits for the others.
    caf::reacts_to<worker_info, rank_actor>,
    // From the reward: a group is done.
    caf::reacts_to<group_scored>,
    // From weight sync: a rollout has a version, or could not get it.
    caf::reacts_to<rollout_holds>, caf::reacts_to<rollout_failed>,
    // From a worker that must end; from the supervisor, a process that has ended.
    caf::reacts_to<worker_failed>, caf::reacts_to<worker_exited>,
    // From the user.
    caf::reacts_to<stop_run>,
    // To itself: deadlines.
    caf::reacts_to<caf::tick_atom>>;

/// All that a stranger can reach: the published actor.
using door_actor = caf::typed_actor<
    // Checks secret, protocol and build; the role comes from the coordinator.
    caf::replies_to<join_request>::with<join_answer, coordinator_actor>>;

/// Hash of every message's fields and types and of the program's version.
std::uint64_t protocol_hash();
/// "0.1.0": what `--version` says; equal in all processes of a run.
std::string build_name();
/// Which bits the kernels make: raised when a kernel's definition changes; the same for all instruction sets, not for CPU and GPU.
std::string numerics_name(bool gpu = false);

/// An error across actors, with its text; `to_exception` turns it back.
caf::error to_caf(const error& e);
error to_exception(const caf::error& e, const std::string& whom);

} // namespace troupe

CAF_ERROR_CODE_ENUM(troupe::errc, "troupe")

CAF_BEGIN_TYPE_ID_BLOCK(troupe, caf::first_custom_type_id)
CAF_ADD_TYPE_ID(troupe, (troupe::weights_version))
CAF_ADD_TYPE_ID(troupe, (troupe::group_key))
CAF_ADD_TYPE_ID(troupe, (troupe::join_request))
CAF_ADD_TYPE_ID(troupe, (troupe::join_answer))
CAF_ADD_TYPE_ID(troupe, (troupe::worker_info))
CAF_ADD_TYPE_ID(troupe, (troupe::rank_peers))
CAF_ADD_TYPE_ID(troupe, (troupe::fetch_texts))
CAF_ADD_TYPE_ID(troupe, (troupe::texts_part))
CAF_ADD_TYPE_ID(troupe, (troupe::generate_group))
CAF_ADD_TYPE_ID(troupe, (troupe::group_scored))
CAF_ADD_TYPE_ID(troupe, (troupe::ship_batch))
CAF_ADD_TYPE_ID(troupe, (troupe::batch_shipped))
CAF_ADD_TYPE_ID(troupe, (troupe::restore_learner))
CAF_ADD_TYPE_ID(troupe, (troupe::learner_restored))
CAF_ADD_TYPE_ID(troupe, (troupe::train_step))
CAF_ADD_TYPE_ID(troupe, (troupe::step_trained))
CAF_ADD_TYPE_ID(troupe, (troupe::save_checkpoint))
CAF_ADD_TYPE_ID(troupe, (troupe::checkpoint_saved))
CAF_ADD_TYPE_ID(troupe, (troupe::publish_weights))
CAF_ADD_TYPE_ID(troupe, (troupe::weights_published))
CAF_ADD_TYPE_ID(troupe, (troupe::fetch_weights))
CAF_ADD_TYPE_ID(troupe, (troupe::weights_fetched))
CAF_ADD_TYPE_ID(troupe, (troupe::sync_weights))
CAF_ADD_TYPE_ID(troupe, (troupe::rollout_holds))
CAF_ADD_TYPE_ID(troupe, (troupe::rollout_failed))
CAF_ADD_TYPE_ID(troupe, (troupe::worker_failed))
CAF_ADD_TYPE_ID(troupe, (troupe::worker_exited))
CAF_ADD_TYPE_ID(troupe, (troupe::stop_run))
CAF_ADD_TYPE_ID(troupe, (troupe::rollout_status))
CAF_ADD_TYPE_ID(troupe, (troupe::rollout_actor))
CAF_ADD_TYPE_ID(troupe, (troupe::learner_actor))
CAF_ADD_TYPE_ID(troupe, (troupe::reward_actor))
CAF_ADD_TYPE_ID(troupe, (troupe::rank_actor))
CAF_ADD_TYPE_ID(troupe, (troupe::weight_sync_actor))
CAF_ADD_TYPE_ID(troupe, (troupe::coordinator_actor))
CAF_ADD_TYPE_ID(troupe, (troupe::door_actor))
CAF_END_TYPE_ID_BLOCK(troupe)
