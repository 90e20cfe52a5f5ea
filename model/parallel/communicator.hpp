#pragma once
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// A group of ranks. A collective is called by all of them, in the same order and with the same sizes; bytes are those of one rank's part.
/// A wait that lasts longer than the deadline throws errc::timeout, naming `what` and who is waited for; sizes that differ
/// throw errc::bad_shape; either aborts the whole world. One thread a rank; `abort` any thread.
class communicator {
public:
  virtual ~communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// to: [size][bytes], the parts of all ranks in rank order.
  virtual void all_gather(const void* from, void* to, std::size_t bytes, std::string_view what) = 0;
  /// from, to: [size][bytes]; part r of `from` goes to rank r, what rank r sends lands at part r of `to`.
  virtual void all_to_all(const void* from, void* to, std::size_t bytes, std::string_view what) = 0;
  virtual void broadcast(void* data, std::size_t bytes, int root, std::string_view what) = 0;
  /// Buffered: returns when `from` may be written again.
  virtual void send(const void* from, std::size_t bytes, int to, std::string_view what) = 0;
  virtual void recv(void* to, std::size_t bytes, int from, std::string_view what) = 0;
  virtual void barrier(std::string_view what) = 0;
  /// Every wait of every rank of the world, under way or later, throws errc::peer_lost with `reason`. The first reason stays.
  virtual void abort(const std::string& reason) = 0;
  /// Waits for nothing. Throws errc::peer_lost after an abort, this rank's or another's that has been heard of.
  virtual void check() = 0;
};

using communicator_deadline = std::chrono::milliseconds;
constexpr communicator_deadline default_deadline{120000};

struct thread_world_state;
struct zmq_world_state;

/// Ranks that are threads of this process. Groups are made first, then each communicator goes to its thread.
class thread_world {
public:
  explicit thread_world(communicator_deadline deadline = default_deadline);
  ~thread_world();
  /// One communicator a member, in rank order; they outlive the world. name: for messages, e.g. "tp".
  std::vector<std::shared_ptr<communicator>> group(const std::string& name, int size);
  void abort(const std::string& reason);
  /// Forgets an abort and what was under way; only while no rank is in a call.
  void reset();

private:
  std::shared_ptr<thread_world_state> state_;
};

/// One rank of a world of processes, over ZeroMQ on loopback. One thread, `abort` excepted.
class zmq_world {
public:
  /// Listens at once. secret: the run's; what comes without it is dropped, and counted in messages about waits.
  zmq_world(int rank, int size, std::string secret, communicator_deadline deadline = default_deadline);
  ~zmq_world();
  /// Where the others reach this rank; the caller exchanges these.
  std::string endpoint() const;
  /// endpoints: of all ranks, in rank order. Throws errc::bad_input for another number or what is no endpoint.
  void connect(const std::vector<std::string>& endpoints);
  /// The group of these world ranks (ascending, this one among them). Every rank makes groups of the same names in the same order.
  std::shared_ptr<communicator> group(const std::string& name, const std::vector<int>& ranks);
  /// Waits, without a deadline, for a message that no call has taken yet. Throws errc::peer_lost after an abort.
  void idle();
  void abort(const std::string& reason);

private:
  std::shared_ptr<zmq_world_state> state_;
};

/// Ranks ordered [pp, dp, tp]: the ranks of one tensor-parallel group are consecutive.
struct mesh {
  int pp = 1, dp = 1, tp = 1;
  int size() const { return pp * dp * tp; }
  int rank_of(int p, int d, int t) const { return (p * dp + d) * tp + t; }
};

/// A rank's place and its groups; a group of one rank has no communicator.
struct rank_context {
  mesh shape;
  int pp_rank = 0, dp_rank = 0, tp_rank = 0;
  std::shared_ptr<communicator> tp, pp, dp;
  bool first_stage() const { return pp_rank == 0; }
  bool last_stage() const { return pp_rank == shape.pp - 1; }
};

/// The contexts of all ranks, by rank.
std::vector<rank_context> make_contexts(thread_world& world, const mesh& shape);
/// The context of the world's own rank.
rank_context make_context(zmq_world& world, int rank, const mesh& shape);

} // namespace troupe
