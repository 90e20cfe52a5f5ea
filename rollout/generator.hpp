#pragma once
#include "experience/trajectory.hpp"
#include "model/causal_lm.hpp"
#include "rollout/sampler.hpp"
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace troupe {

class tokenizer;

/// Tokens that run before they are drawn: the drafter's guesses, each checked by the draw itself. Changes no result.
struct speculative_options {
  std::int64_t num_speculative_tokens = 0; // most of a sample and pass; 0: off
  std::int64_t disable_by_batch_size = 16; // while more sequences run there is no draft: the pass has enough rows
  double row_cost = 0;                     // of a pass, of one more row: how likely a draft must be; 0: learnt from the passes' seconds
};

struct generator_options {
  std::int64_t max_num_seqs = 256;      // sequences that run at once
  std::int64_t max_batch_tokens = 2048; // rows of one pass: decode rows first, prefill chunks fill up
  std::int64_t cache_blocks = 0; // 0: enough for max_num_seqs sequences of max_sequence tokens, within half of the memory that is free
  std::int64_t max_sequence = 0; // tokens; 0: the model's max_position_embeddings
  std::optional<std::vector<std::int32_t>> eos_token_ids = {}; // load_eos_token_ids; none: the model configuration's
  speculative_options speculative = {};
  /// Calls f(i) for i in [0, n), on any threads; f does not throw. Empty: one after the other.
  std::function<void(std::int64_t n, const std::function<void(std::int64_t)>& f)> parallel_for = {};
};

struct token_logprob {
  std::int32_t id = 0;
  float logprob = 0; // of the same softmax as sample::logprobs
  bool operator==(const token_logprob&) const = default;
};

/// A token of a sample that is under way.
struct streamed_token {
  std::uint64_t id = 0; // the request's
  std::int64_t sample_index = 0;
  token_logprob token;
  std::vector<token_logprob> top = {}; // [min(top_logprobs, vocab)], the most probable first
  weights_version version = {};        // of the weights that drew it
};

/// A prompt to be continued `n` times.
struct generation_request {
  std::uint64_t id = 0; // the caller's; unique among those under way
  std::vector<std::int32_t> prompt_ids;
  std::int64_t n = 1;
  std::int64_t expected_tokens = 0; // of a sample, where an earlier run of the prompt tells: longer ones start first
  sampling_params params;
  draw_key key;                                        // seed, domain, step, index; sample and position are filled in per token
  float logprob_temperature = 1.0f;                    // reported log-probs: softmax of logits / this
  std::function<void(streamed_token&&)> on_token = {}; // every token in its order, called by step before it returns; does not throw
};

/// A finished sample.
struct generation_output {
  std::uint64_t id = 0;
  std::int64_t sample_index = 0;
  sample result;
  std::size_t text_stop = 0;           // stop strings: bytes of the decoded text to keep; npos: all
  std::vector<token_logprob> top = {}; // [output_ids, min(top_logprobs, vocab)], the most probable first
};

/// What a generator did since it was made.
struct generator_counts {
  std::int64_t passes = 0, rows = 0;        // of the model; rows: tokens that went through it
  std::int64_t preemptions = 0;             // sequences that gave their blocks back and were computed again
  std::int64_t reused_prompt_tokens = 0;    // that an earlier request's blocks held
  std::int64_t drafted = 0, accepted = 0;   // tokens that ran as drafts; those of them that were drawn
  std::int64_t blocks = 0, free_blocks = 0; // of the cache; those that are only kept for reuse are free
};

/// What a change of the weights does to keys and values that the old ones computed.
enum class inflight_cache : std::uint8_t {
  recompute, // computed again before the next token: its log-prob is what the new weights score
  keep,      // sequences under way go on with theirs
};

/// Continuous batching over a block cache; the prompt's blocks are shared by its n samples. One thread.
/// Results do not depend on what else is under way, on the order of requests or on the options.
class generator {
public:
  /// tok: needed for stop strings only, may be null.
  generator(std::shared_ptr<causal_lm> model, std::shared_ptr<const tokenizer> tok, generator_options options);
  ~generator();
  /// Throws errc::bad_input when the prompt is empty, has ids outside the vocabulary, leaves no room in max_sequence or needs
  /// more than the whole cache, and errc::bad_usage when a parameter is out of range.
  void add(generation_request request);
  /// One pass of the model; returns the samples that ended in it. Throws errc::failed while asleep.
  std::vector<generation_output> step();
  std::int64_t max_num_seqs() const;
  bool idle() const; // nothing waits or runs
  /// Ends a request's samples with finish_reason abort at the next step.
  void abort(std::uint64_t id);
  /// The weights changed, between two steps: stamps later tokens. What earlier weights computed is not found again.
  void set_version(weights_version version, inflight_cache under_way = inflight_cache::recompute);
  /// Frees the cache's memory until wake; what is under way is then computed again. Requests may come meanwhile, steps may not.
  void sleep();
  void wake();
  generator_counts counts() const;

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

} // namespace troupe
