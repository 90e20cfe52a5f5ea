#pragma once
#include <cstdint>
#include <string_view>

namespace troupe {

/// Instruction sets of the CPU kernels. All give the same bits.
enum class isa : std::uint8_t { scalar, avx2, avx512, amx };

bool supported(isa which) noexcept;
isa best_isa() noexcept;
/// "scalar" | "avx2" | "avx512" | "amx"; throws errc::bad_usage listing these.
isa isa_from_name(std::string_view name);
std::string_view name_of(isa which) noexcept;

} // namespace troupe
