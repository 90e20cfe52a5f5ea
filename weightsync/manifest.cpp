#include "weightsync/manifest.hpp"
#include "core/binary.hpp"
#include "core/error.hpp"
#include "weightsync/device.hpp"
#include <algorithm>
#include <limits>

namespace troupe {
namespace {

constexpr std::uint32_t magic = 0x464d5754; // "TWMF"
constexpr std::uint32_t format = 2;
constexpr std::size_t entry_bytes = 4 + 1 + 4 + 8 + 1 + 8 + 4 + 1 + 8; // of an entry without name and dimensions

/// A bijection of the word for every index, so that one changed word always changes the sum; not linear, so that exchanged
/// words do as well. Constants: splitmix64.
std::uint64_t mix(std::uint64_t word, std::uint64_t index) {
  std::uint64_t x = word + (index + 1) * 0x9E3779B97F4A7C15u;
  x ^= x >> 32;
  x *= 0xBF58476D1CE4E5B9u;
  return x ^ x >> 29;
}

std::uint64_t bytes_of(byte_reader& in, const manifest_entry& e) {
  std::uint64_t n = size_of(e.type);
  for (std::int64_t d : e.shape) {
    if (d < 0)
      in.fail("tensor " + e.name + " has a dimension of " + std::to_string(d));
    if (d != 0 && n > std::numeric_limits<std::uint64_t>::max() / std::uint64_t(d))
      in.fail("tensor " + e.name + " has a shape of more than 2^64 bytes");
    n *= std::uint64_t(d);
  }
  return n;
}

/// Whether the part lies in the whole.
void check_part(byte_reader& in, const manifest_entry& e) {
  bool good = e.global_shape.empty() ? e.begin == 0 : e.global_shape.size() == e.shape.size() && e.dim < e.shape.size() && e.begin >= 0;
  for (std::size_t d = 0; good && d < e.global_shape.size(); ++d)
    good = d == e.dim ? e.begin <= e.global_shape[d] && e.shape[d] <= e.global_shape[d] - e.begin : e.shape[d] == e.global_shape[d];
  if (!good)
    in.fail("tensor " + e.name + " is a part that does not lie in its whole");
}

manifest_entry get_entry(byte_reader& in) {
  manifest_entry e;
  e.name = in.get_string();
  const auto type = in.get<std::uint8_t>();
  if (type > std::uint8_t(dtype::boolean))
    in.fail("tensor " + e.name + " has dtype " + std::to_string(type) + ", which is not known");
  e.type = dtype(type);
  e.shape = in.get_array<std::int64_t>();
  e.n_bytes = in.get<std::uint64_t>();
  if (const std::uint64_t expected = bytes_of(in, e); e.n_bytes != expected)
    in.fail("tensor " + e.name + " has " + std::to_string(e.n_bytes) + " bytes, its shape says " + std::to_string(expected));
  const auto trainable = in.get<std::uint8_t>();
  if (trainable > 1)
    in.fail("tensor " + e.name + " has a trainable flag of " + std::to_string(trainable));
  e.trainable = trainable == 1;
  e.checksum = in.get<std::uint64_t>();
  e.global_shape = in.get_array<std::int64_t>();
  e.dim = in.get<std::uint8_t>();
  e.begin = in.get<std::int64_t>();
  check_part(in, e);
  return e;
}

} // namespace

std::uint64_t weights_checksum(std::span<const std::byte> bytes, std::uint64_t first_word) {
  std::uint64_t sum = 0, word = 0;
  const std::size_t n_words = bytes.size() / 8;
  for (std::size_t i = 0; i < n_words; ++i) {
    std::memcpy(&word, bytes.data() + i * 8, 8);
    sum += mix(word, first_word + i);
  }
  if (const std::size_t tail = bytes.size() % 8) {
    word = 0;
    std::memcpy(&word, bytes.data() + n_words * 8, tail);
    sum += mix(word, first_word + n_words);
  }
  return sum;
}

namespace {

/// Of the values where the forward pass reads them: on the GPU, if the model is there.
std::vector<std::uint64_t> checksums_of(std::span<const parameter* const> parameters) {
  std::vector<std::uint64_t> sums;
  std::vector<device_bytes> on_device;
  for (const parameter* p : parameters)
    if (p->device_value)
      on_device.push_back({p->device_value, p->value.size()});
    else
      sums.push_back(weights_checksum(p->value));
  if (!on_device.empty() && !sums.empty())
    throw error(errc::unsupported, "weights: some of the model's tensors are on a GPU and some are not");
  return on_device.empty() ? sums : device_checksums(on_device);
}

std::vector<const parameter*> own_parameters(causal_lm& model) {
  std::vector<const parameter*> own;
  for (const parameter& p : model.parameters())
    if (!p.copy)
      own.push_back(&p);
  return own;
}

} // namespace

manifest make_manifest(causal_lm& model, weights_version version) {
  const auto own = own_parameters(model);
  const auto sums = checksums_of(own);
  manifest m{version, {}};
  for (std::size_t i = 0; i < own.size(); ++i) {
    const parameter& p = *own[i];
    m.entries.push_back(
        {p.name, model.compute_type(), p.shape, p.value.size(), p.trainable, sums[i], p.global_shape, std::uint8_t(p.dim), p.begin});
  }
  return m;
}

void update_manifest(manifest& m, causal_lm& model, weights_version version) {
  std::vector<const parameter*> changed;
  std::vector<manifest_entry*> entries;
  const auto own = own_parameters(model);
  for (std::size_t i = 0; i < own.size(); ++i)
    if (own[i]->trainable) {
      changed.push_back(own[i]);
      entries.push_back(&m.entries.at(i));
    }
  const auto sums = checksums_of(changed);
  for (std::size_t i = 0; i < sums.size(); ++i)
    entries[i]->checksum = sums[i];
  m.version = version;
}

std::string pack_manifest(const manifest& m) {
  byte_writer out;
  out.put(magic);
  out.put(format);
  out.put(m.version.incarnation);
  out.put(m.version.step);
  out.put(std::uint32_t(m.entries.size()));
  for (const manifest_entry& e : m.entries) {
    out.put_string(e.name);
    out.put(std::uint8_t(e.type));
    out.put_array(std::span<const std::int64_t>(e.shape));
    out.put(e.n_bytes);
    out.put(std::uint8_t(e.trainable));
    out.put(e.checksum);
    out.put_array(std::span<const std::int64_t>(e.global_shape));
    out.put(e.dim);
    out.put(e.begin);
  }
  return out.take();
}

manifest unpack_manifest(std::string_view bytes) {
  byte_reader in(bytes, "weights manifest");
  if (in.get<std::uint32_t>() != magic)
    in.fail("not a manifest");
  if (const auto v = in.get<std::uint32_t>(); v != format)
    in.fail("format " + std::to_string(v) + ", this program reads " + std::to_string(format));
  manifest m;
  m.version.incarnation = in.get<std::uint32_t>();
  m.version.step = in.get<std::uint32_t>();
  const std::uint32_t n = in.get_count(entry_bytes);
  for (std::uint32_t i = 0; i < n; ++i)
    m.entries.push_back(get_entry(in));
  in.finish();
  return m;
}

} // namespace troupe
