#include "model/kernels/isa.hpp"
#include "core/error.hpp"
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace troupe {

namespace {

constexpr std::string_view names[] = {"scalar", "avx2", "avx512", "amx"};

// The kernel hands out AMX's tile registers only to processes that ask (arch_prctl ARCH_REQ_XCOMP_PERM, feature 18).
bool amx_permitted() noexcept {
  static const bool permitted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return permitted;
}

// clang 14 knows no name for it.
bool has_amx_bf16() noexcept {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 22 & 1) != 0;
}

} // namespace

bool supported(isa which) noexcept {
  switch (which) {
  case isa::scalar:
    return true;
  case isa::avx2:
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  case isa::avx512:
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && supported(isa::avx2);
  case isa::amx:
    return supported(isa::avx512) && __builtin_cpu_supports("avx512bf16") && has_amx_bf16() && amx_permitted();
  }
  return false;
}

isa best_isa() noexcept {
  for (isa which : {isa::amx, isa::avx512, isa::avx2})
    if (supported(which))
      return which;
  return isa::scalar;
}

isa isa_from_name(std::string_view name) {
  for (std::size_t i = 0; i < std::size(names); ++i)
    if (names[i] == name)
      return isa(i);
  throw error{errc::bad_usage, "--isa " + std::string(name) + ": known are scalar, avx2, avx512, amx"};
}

std::string_view name_of(isa which) noexcept { return names[std::size_t(which)]; }

} // namespace troupe
