#pragma once
#include <cstdint>

namespace troupe::kernels {

/// What LDTILECFG reads: the shape of each of the eight tiles.
struct alignas(64) tile_configuration {
  std::uint8_t palette = 1, start = 0, pad[14] = {};
  std::uint16_t bytes[16] = {}; // a row; 0: the tile is not used
  std::uint8_t rows[16] = {};
};

inline void load_tile_configuration(const tile_configuration& c) { asm volatile("ldtilecfg %0" ::"m"(c)); }
inline void release_all_tiles() { asm volatile("tilerelease"); }

// Tile numbers are part of the instruction, so these are macros. stride: bytes from row to row. TILE_DP: c += a b, pairs of bf16.
#define TILE_LOAD(t, p, stride) asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"((std::int64_t)(stride)) : "memory")
#define TILE_STORE(t, p, stride) asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"((std::int64_t)(stride)) : "memory")
#define TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::)
#define TILE_DP(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

} // namespace troupe::kernels
