#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/nccl.hpp"
#include <cstring>
#include <nccl.h>
#include <thread>

namespace troupe::cuda {

namespace {

using std::chrono::steady_clock;

constexpr auto spin = std::chrono::microseconds(100); // most waits end within it
constexpr auto nap = std::chrono::microseconds(20);
constexpr auto between_checks = std::chrono::milliseconds(1);

std::string reason_of(ncclResult_t status, ncclComm_t comm) {
  const char* last = ncclGetLastError(comm);
  return std::string(ncclGetErrorString(status)) + (last && *last ? std::string(" (") + last + ")" : "");
}

void accept(ncclResult_t status, const char* what) {
  if (status != ncclSuccess)
    throw error(errc::failed, std::string(what) + ": NCCL says: " + reason_of(status, nullptr));
}

} // namespace

nccl_id make_nccl_id() {
  ncclUniqueId made;
  accept(ncclGetUniqueId(&made), "making a communicator's id");
  nccl_id id;
  static_assert(sizeof made == sizeof id);
  std::memcpy(id.data(), &made, sizeof id);
  return id;
}

int nccl_version() {
  int version = 0;
  accept(ncclGetVersion(&version), "asking for NCCL's version");
  return version;
}

nccl_rank::nccl_rank(const nccl_id& id, int rank, int size, std::string name, std::chrono::milliseconds deadline,
                     std::function<void()> check)
    : rank_(rank), size_(size), name_(std::move(name)), deadline_(deadline), check_(std::move(check)) {
  ncclUniqueId unique;
  std::memcpy(&unique, id.data(), sizeof unique);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0; // every call returns, so that every wait has a deadline
  finish(ncclCommInitRankConfig(&comm_, size, unique, rank, &config), "all ranks to join");
}

nccl_rank::~nccl_rank() { end("it is over"); }

void nccl_rank::end(const std::string& reason) {
  if (!comm_)
    return;
  reason_ = reason;
  ncclCommAbort(comm_);
  comm_ = nullptr;
}

void nccl_rank::fail(const error& e) {
  end(e.what());
  throw e;
}

void nccl_rank::check_alive() const {
  if (!comm_)
    throw error(errc::peer_lost, reason_);
}

error nccl_rank::refusal(int status, std::string_view what) const {
  const std::string hint =
      status == ncclInvalidUsage ? "; ranks that share a GPU need NCCL 2.30 or later and NCCL_MULTI_RANK_GPU_ENABLE=1" : "";
  return error(errc::failed, "communicator " + name_ + ": rank " + std::to_string(rank_) + " of " + std::to_string(size_) + ", " +
                                 std::string(what) + ": NCCL says: " + reason_of(ncclResult_t(status), comm_) + hint);
}

template <class Ready>
void nccl_rank::until(Ready ready, std::string_view what) {
  const auto begin = steady_clock::now();
  auto checked = begin;
  while (!ready()) {
    const auto now = steady_clock::now();
    if (now - begin > deadline_)
      fail(error(errc::timeout, "communicator " + name_ + ": rank " + std::to_string(rank_) + " of " + std::to_string(size_) + " waited " +
                                    std::to_string(deadline_.count()) + " ms for " + std::string(what) +
                                    "; another rank is gone, stopped or slower than the deadline"));
    if (check_ && now - checked > between_checks) {
      checked = now;
      try {
        check_();
      } catch (const std::exception& e) {
        end(e.what());
        throw;
      }
    }
    if (now - begin > spin)
      std::this_thread::sleep_for(nap);
  }
}

// Until NCCL has taken what was asked of it.
void nccl_rank::finish(int status, std::string_view what) {
  until(
      [&] {
        auto now = ncclResult_t(status);
        if (now == ncclInProgress)
          if (const ncclResult_t asked = ncclCommGetAsyncError(comm_, &now); asked != ncclSuccess)
            now = asked;
        if (now != ncclSuccess && now != ncclInProgress)
          fail(refusal(now, what));
        return now == ncclSuccess;
      },
      what);
}

// A call of a group is only noted; the group's end says how they fared.
void nccl_rank::called(int status, std::string_view what) {
  if (!in_group_)
    finish(status, what);
  else if (status != ncclSuccess && status != ncclInProgress)
    throw refusal(status, what);
}

void nccl_rank::wait(stream where, std::string_view what) {
  check_alive();
  until(
      [&] {
        const cudaError_t done = cudaStreamQuery(where);
        if (done != cudaErrorNotReady) {
          check(done, "waiting for a collective");
          return true;
        }
        ncclResult_t now = ncclSuccess;
        if (ncclCommGetAsyncError(comm_, &now) == ncclSuccess && now != ncclSuccess && now != ncclInProgress)
          fail(refusal(now, what));
        return false;
      },
      what);
}

void nccl_rank::all_gather(const void* from, void* to, std::size_t bytes, stream where, std::string_view what) {
  check_alive();
  called(ncclAllGather(from, to, bytes, ncclChar, comm_, where), what);
}

void nccl_rank::broadcast(void* data, std::size_t bytes, int root, stream where, std::string_view what) {
  check_alive();
  called(ncclBroadcast(data, data, bytes, ncclChar, root, comm_, where), what);
}

void nccl_rank::send(const void* from, std::size_t bytes, int to, stream where, std::string_view what) {
  check_alive();
  called(ncclSend(from, bytes, ncclChar, to, comm_, where), what);
}

void nccl_rank::recv(void* to, std::size_t bytes, int from, stream where, std::string_view what) {
  check_alive();
  called(ncclRecv(to, bytes, ncclChar, from, comm_, where), what);
}

void nccl_rank::all_to_all(const void* from, void* to, std::size_t bytes, stream where, std::string_view what) {
  group(what, [&] {
    for (int r = 0; r < size_; ++r) {
      send(static_cast<const char*>(from) + std::size_t(r) * bytes, bytes, r, where, what);
      recv(static_cast<char*>(to) + std::size_t(r) * bytes, bytes, r, where, what);
    }
  });
}

void nccl_rank::group(std::string_view what, const std::function<void()>& calls) {
  if (in_group_)
    return calls();
  check_alive();
  accept(ncclGroupStart(), "beginning a group of calls");
  in_group_ = true;
  try {
    calls();
  } catch (const std::exception& e) {
    in_group_ = false;
    ncclGroupEnd(); // the thread's group ends whatever came of it
    end(e.what());
    throw;
  }
  in_group_ = false;
  finish(ncclGroupEnd(), what);
}

} // namespace troupe::cuda
