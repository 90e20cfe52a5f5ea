#include "core/error.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/device.hpp"

// Of a program that is built without CUDA.
namespace troupe {
namespace {

[[noreturn]] void lacking(const char* what) {
  throw error(errc::unsupported, std::string(what) + ": this program is built without CUDA; ./dev build cuda builds one with it");
}

} // namespace

bool has_nccl() { return false; }

bool nccl_reaches(const std::string&, const void*) { return false; }

std::vector<std::uint64_t> device_checksums(std::span<const device_bytes>) { lacking("checksums on a GPU"); }

// NOLINTNEXTLINE(performance-unnecessary-value-param): declared for the one with NCCL
std::unique_ptr<weights_source> make_nccl_source(std::shared_ptr<causal_lm>, const std::string&, const std::string&, const nccl_limits&) {
  lacking("weights over NCCL");
}

// NOLINTNEXTLINE(performance-unnecessary-value-param)
std::unique_ptr<weights_sink> make_nccl_sink(const std::string&, std::shared_ptr<causal_lm>, const std::string&) {
  lacking("weights over NCCL");
}

} // namespace troupe
