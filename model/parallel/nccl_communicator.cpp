#include "core/error.hpp"
#include "model/kernels/cuda/nccl.hpp"
#include "model/parallel/device_communicator.hpp"
#include "model/parallel/messages.hpp"

namespace troupe {

namespace {

class nccl_communicator final : public device_communicator {
public:
  nccl_communicator(std::shared_ptr<communicator> group, const std::string& name, const cuda::nccl_id& id, communicator_deadline deadline)
      : group_(std::move(group)), name_(name), nccl_(id, group_->rank(), group_->size(), name, deadline, [this] { group_->check(); }) {}

  int rank() const override { return nccl_.rank(); }
  int size() const override { return nccl_.size(); }
  void all_gather(const void* from, void* to, std::size_t bytes, cuda::stream where, std::string_view what) override {
    told([&] { nccl_.all_gather(from, to, bytes, where, what); });
  }
  void all_to_all(const void* from, void* to, std::size_t bytes, cuda::stream where, std::string_view what) override {
    told([&] { nccl_.all_to_all(from, to, bytes, where, what); });
  }
  void broadcast(void* data, std::size_t bytes, int root, cuda::stream where, std::string_view what) override {
    if (root != rank())
      check_peer(name_, root, rank(), size());
    told([&] { nccl_.broadcast(data, bytes, root, where, what); });
  }
  void send(const void* from, std::size_t bytes, int to, cuda::stream where, std::string_view what) override {
    check_peer(name_, to, rank(), size());
    told([&] { nccl_.send(from, bytes, to, where, what); });
  }
  void recv(void* to, std::size_t bytes, int from, cuda::stream where, std::string_view what) override {
    check_peer(name_, from, rank(), size());
    told([&] { nccl_.recv(to, bytes, from, where, what); });
  }
  void group(std::string_view what, const std::function<void()>& calls) override {
    told([&] { nccl_.group(what, calls); });
  }
  void wait(cuda::stream where, std::string_view what) override {
    group_->check();
    told([&] { nccl_.wait(where, what); });
  }
  void abort(const std::string& reason) override { group_->abort(reason); }

private:
  /// What ends this rank's part ends the world: the others need not wait for their deadline.
  template <class Call>
  void told(Call call) {
    try {
      call();
    } catch (const std::exception& e) {
      group_->abort(e.what());
      throw;
    }
  }

  const std::shared_ptr<communicator> group_;
  const std::string name_;
  cuda::nccl_rank nccl_;
};

} // namespace

std::unique_ptr<device_communicator> make_nccl_communicator(std::shared_ptr<communicator> group, const std::string& name,
                                                            communicator_deadline deadline) {
  try {
    cuda::nccl_id id = {};
    if (group->rank() == 0)
      id = cuda::make_nccl_id();
    group->broadcast(id.data(), id.size(), 0, "the id of NCCL communicator " + name);
    return std::make_unique<nccl_communicator>(group, name, id, deadline);
  } catch (const std::exception& e) {
    group->abort(e.what());
    throw;
  }
}

} // namespace troupe
