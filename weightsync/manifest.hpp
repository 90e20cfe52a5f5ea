#pragma once
#include "experience/trajectory.hpp"
#include "model/causal_lm.hpp"
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// One tensor of a manifest, or one rank's part of it.
struct manifest_entry {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape; // of the part
  std::uint64_t n_bytes = 0;
  bool trainable = false;
  std::uint64_t checksum = 0; // of the bytes of `version`
  // As in `parameter`: the part is [begin, begin + shape[dim]) of the whole along dim; empty: it is the whole.
  std::vector<std::int64_t> global_shape = {};
  std::uint8_t dim = 0;
  std::int64_t begin = 0;
};

/// What a holder of a version has.
struct manifest {
  weights_version version;
  std::vector<manifest_entry> entries;
};

/// 64-bit checksum: little endian words mixed with their index and summed modulo 2^64; a last, partial word is padded with zeros.
/// Ranges that begin at multiples of 8 bytes may be done in any order: their sums, each with its `first_word`, add up to the whole's.
std::uint64_t weights_checksum(std::span<const std::byte> bytes, std::uint64_t first_word = 0);
/// What the model's process holds, parts that another rank counts as its own (`parameter::copy`) left out.
manifest make_manifest(causal_lm& model, weights_version version);
/// The same for a later version: of the tensors that are not trainable the checksums stay.
void update_manifest(manifest& m, causal_lm& model, weights_version version);
std::string pack_manifest(const manifest& m);
/// Sizes are checked against shapes and dtypes. Throws errc::bad_input.
manifest unpack_manifest(std::string_view bytes);

} // namespace troupe
