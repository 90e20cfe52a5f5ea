#pragma once
#include "core/binary.hpp"
#include "model/parallel/communicator.hpp"
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace troupe {

/// Ranks that are processes and act as one: the first decides what is done, the others follow it. Whatever is made of it is made
/// on every rank. One thread.
class process_ranks {
public:
  using task = std::function<void(byte_reader& in)>;

  /// world: connected, of shape.size() ranks of which this is `rank`.
  process_ranks(std::shared_ptr<zmq_world> world, int rank, const mesh& shape);
  const rank_context& place() const { return place_; }
  bool leads() const { return rank_ == 0; }
  bool tells() const { return leads() && !inside_; } // whether `run` takes the others along
  communicator& all() const { return *all_; }        // every rank
  /// What the other ranks do when the first one runs `name`; replaces an earlier task of that name.
  void on(const std::string& name, task what) { tasks_[name] = std::move(what); }
  /// First rank: the others do `name` with these bytes while this one does `own`; an exception aborts the world and goes on.
  /// Within another `run`, and on another rank: `own` alone, as all ranks are at the same place.
  void run(const std::string& name, const std::string& bytes, const std::function<void()>& own);
  /// The other ranks: what the first one asks for, until the world is aborted (errc::peer_lost) or a task throws.
  [[noreturn]] void serve();

private:
  void tell(const std::string& command) const;
  const std::shared_ptr<zmq_world> world_;
  const int rank_;
  const std::shared_ptr<communicator> all_;
  const rank_context place_;
  std::map<std::string, task> tasks_;
  bool inside_ = false; // a run
};

} // namespace troupe
