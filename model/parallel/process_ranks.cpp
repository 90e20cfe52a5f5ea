#include "model/parallel/process_ranks.hpp"
#include "core/error.hpp"
#include <numeric>

namespace troupe {

namespace {

std::shared_ptr<communicator> group_of_all(zmq_world& world, int size) {
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return world.group("ranks", ranks);
}

} // namespace

process_ranks::process_ranks(std::shared_ptr<zmq_world> world, int rank, const mesh& shape)
    : world_(std::move(world)), rank_(rank), all_(group_of_all(*world_, shape.size())), place_(make_context(*world_, rank, shape)) {}

void process_ranks::tell(const std::string& command) const {
  const std::uint64_t bytes = command.size();
  for (int r = 1; r < all_->size(); ++r) {
    all_->send(&bytes, sizeof bytes, r, "a command's size");
    all_->send(command.data(), command.size(), r, "a command");
  }
}

void process_ranks::run(const std::string& name, const std::string& bytes, const std::function<void()>& own) {
  if (!tells())
    return own();
  inside_ = true;
  try {
    byte_writer command;
    command.put_string(name);
    tell(command.take() + bytes);
    own();
  } catch (const std::exception& e) {
    inside_ = false;
    world_->abort(e.what());
    throw;
  }
  inside_ = false;
}

void process_ranks::serve() {
  for (;;) {
    world_->idle();
    std::uint64_t bytes = 0;
    all_->recv(&bytes, sizeof bytes, 0, "a command's size");
    std::string command(bytes, '\0');
    all_->recv(command.data(), command.size(), 0, "a command");
    byte_reader in(command, "a command of the first rank");
    const std::string name = in.get_string();
    const auto found = tasks_.find(name);
    if (found == tasks_.end())
      throw error{errc::failed, "rank " + std::to_string(rank_) + ": the first rank asks for " + name + ", which is not known here"};
    found->second(in);
    in.finish();
  }
}

} // namespace troupe
