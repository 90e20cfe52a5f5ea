#include "model/weights/ggml_quants.hpp"
#include "model/weights/half.hpp"
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace troupe {

namespace {

using bytes = const std::uint8_t*;

float f16_at(bytes p) noexcept {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return f16_to_f32(bits);
}

// Every block type has its layout beside its decoder. `p` is a block, `out` its elements. No product is fused with a sum.

void f32_block(bytes p, float* out) noexcept { std::memcpy(out, p, 4); }
void f16_block(bytes p, float* out) noexcept { *out = f16_at(p); }
void bf16_block(bytes p, float* out) noexcept {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  *out = bf16_to_f32(bits);
}

// d f16 | 16 bytes: element i low, element i + 16 high nibble
void q4_0_block(bytes p, float* out) noexcept {
  const float d = f16_at(p);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * float((p[2 + i] & 15) - 8);
    out[i + 16] = d * float((p[2 + i] >> 4) - 8);
  }
}

// d f16 | m f16 | 16 bytes as above
void q4_1_block(bytes p, float* out) noexcept {
  const float d = f16_at(p), m = f16_at(p + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * float(p[4 + i] & 15) + m;
    out[i + 16] = d * float(p[4 + i] >> 4) + m;
  }
}

/// Elements i and i + 16 of 32 five-bit numbers: nibbles in `low`, fifth bits in `high`.
std::pair<int, int> five_bits(bytes low, std::uint32_t high, int i) noexcept {
  return {(low[i] & 15) | int(high >> i & 1u) << 4, low[i] >> 4 | int(high >> (i + 16) & 1u) << 4};
}

// d f16 | fifth bits u32 | 16 bytes
void q5_0_block(bytes p, float* out) noexcept {
  const float d = f16_at(p);
  std::uint32_t high;
  std::memcpy(&high, p + 2, sizeof high);
  for (int i = 0; i < 16; ++i) {
    const auto [a, b] = five_bits(p + 6, high, i);
    out[i] = d * float(a - 16);
    out[i + 16] = d * float(b - 16);
  }
}

// d f16 | m f16 | fifth bits u32 | 16 bytes
void q5_1_block(bytes p, float* out) noexcept {
  const float d = f16_at(p), m = f16_at(p + 2);
  std::uint32_t high;
  std::memcpy(&high, p + 4, sizeof high);
  for (int i = 0; i < 16; ++i) {
    const auto [a, b] = five_bits(p + 8, high, i);
    out[i] = d * float(a) + m;
    out[i + 16] = d * float(b) + m;
  }
}

// d f16 | 32 int8
void q8_0_block(bytes p, float* out) noexcept {
  const float d = f16_at(p);
  for (int i = 0; i < 32; ++i)
    out[i] = float(std::int8_t(p[2 + i])) * d;
}

/// Scale and minimum j of 8, six bits each, packed in 12 bytes: the first four whole, the others split in 4 and 2 bits.
std::pair<int, int> scale_and_min(bytes s, int j) noexcept {
  if (j < 4)
    return {s[j] & 63, s[j + 4] & 63};
  return {(s[j + 4] & 15) | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4};
}

/// The shared part of Q4_K and Q5_K: sub-blocks of 32, two a run of 32 bytes; `high` adds 16 where its bit is set.
template <class High>
void k_block(bytes p, bytes quants, float* out, High high) noexcept {
  const float d = f16_at(p), d_min = f16_at(p + 2);
  for (int j = 0; j < 8; ++j) {
    const auto [scale, min] = scale_and_min(p + 4, j);
    const float step = d * float(scale), offset = d_min * float(min);
    for (int i = 0; i < 32; ++i) {
      const int q = (quants[j / 2 * 32 + i] >> (j % 2 * 4) & 15) + high(j, i);
      out[j * 32 + i] = step * float(q) - offset;
    }
  }
}

// d f16 | dmin f16 | 12 bytes of scales | 128 bytes
void q4_k_block(bytes p, float* out) noexcept {
  k_block(p, p + 16, out, [](int, int) { return 0; });
}

// d f16 | dmin f16 | 12 bytes of scales | 32 bytes of fifth bits | 128 bytes
void q5_k_block(bytes p, float* out) noexcept {
  k_block(p, p + 48, out, [p](int j, int i) { return (p[16 + i] >> j & 1) << 4; });
}

// 128 bytes of low nibbles | 64 bytes of high pairs | 16 int8 scales | d f16
void q6_k_block(bytes p, float* out) noexcept {
  const float d = f16_at(p + 208);
  for (int j = 0; j < 8; ++j) { // runs of 32; half = j / 4 has 64 bytes of `low` and 32 of `high`
    const int half = j / 4, k = j % 4;
    for (int i = 0; i < 32; ++i) {
      const int low = p[half * 64 + k % 2 * 32 + i] >> (k / 2 * 4) & 15;
      const int high = p[128 + half * 32 + i] >> (k * 2) & 3;
      const float scale = d * float(std::int8_t(p[192 + j * 2 + i / 16]));
      out[j * 32 + i] = scale * float((low | high << 4) - 32);
    }
  }
}

struct readable {
  ggml_type type;
  ggml_layout layout;
  void (*decode)(bytes, float*) noexcept;
};

constexpr std::array readables = {
    readable{ggml_type::f32, {"F32", 1, 4}, f32_block},        readable{ggml_type::f16, {"F16", 1, 2}, f16_block},
    readable{ggml_type::bf16, {"BF16", 1, 2}, bf16_block},     readable{ggml_type::q4_0, {"Q4_0", 32, 18}, q4_0_block},
    readable{ggml_type::q4_1, {"Q4_1", 32, 20}, q4_1_block},   readable{ggml_type::q5_0, {"Q5_0", 32, 22}, q5_0_block},
    readable{ggml_type::q5_1, {"Q5_1", 32, 24}, q5_1_block},   readable{ggml_type::q8_0, {"Q8_0", 32, 34}, q8_0_block},
    readable{ggml_type::q4_k, {"Q4_K", 256, 144}, q4_k_block}, readable{ggml_type::q5_k, {"Q5_K", 256, 176}, q5_k_block},
    readable{ggml_type::q6_k, {"Q6_K", 256, 210}, q6_k_block},
};

const readable* find(std::uint32_t type) noexcept {
  const auto found = std::find_if(readables.begin(), readables.end(), [&](const readable& r) { return std::uint32_t(r.type) == type; });
  return found == readables.end() ? nullptr : &*found;
}

} // namespace

const ggml_layout* layout_of(std::uint32_t type) noexcept {
  const auto* found = find(type);
  return found == nullptr ? nullptr : &found->layout;
}

const char* ggml_name(std::uint32_t type) noexcept {
  struct entry {
    std::uint32_t type;
    const char* name;
  };
  constexpr entry others[] = {{9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"},
                              {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"},
                              {24, "I8"},      {25, "I16"},   {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},
                              {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"},  {40, "NVFP4"}, {41, "Q1_0"}};
  if (const auto* layout = layout_of(type))
    return layout->name;
  for (const auto& other : others)
    if (other.type == type)
      return other.name;
  return nullptr;
}

void dequantize(ggml_type type, std::span<const std::byte> blocks, float* out) noexcept {
  const auto* how = find(std::uint32_t(type));
  const auto* data = reinterpret_cast<bytes>(blocks.data());
  if (type == ggml_type::f32) {
    std::copy(blocks.begin(), blocks.end(), reinterpret_cast<std::byte*>(out));
    return;
  }
  for (std::size_t i = 0; i < blocks.size() / how->layout.bytes; ++i)
    how->decode(data + i * how->layout.bytes, out + i * how->layout.block);
}

} // namespace troupe
