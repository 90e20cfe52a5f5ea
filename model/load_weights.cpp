#include "core/error.hpp"
#include "model/compute.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include "model/weights/tensor_check.hpp"
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>

namespace troupe {

namespace {

// Whether one of n numbers is infinite or NaN: its exponent is all ones.
template <class Bits, Bits exponent>
[[gnu::always_inline]] inline bool scan(const void* numbers, std::int64_t n) {
  Bits found = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    Bits bits;
    std::memcpy(&bits, static_cast<const char*>(numbers) + i * std::int64_t(sizeof bits), sizeof bits);
    found = Bits(found | Bits((bits & exponent) == exponent));
  }
  return found != 0;
}

template <class Bits, Bits exponent>
[[gnu::target("avx2")]] bool scan_avx2(const void* numbers, std::int64_t n) {
  return scan<Bits, exponent>(numbers, n);
}

template <class Bits, Bits exponent>
bool scan_by(isa which, const void* numbers, std::int64_t n) {
  return which == isa::scalar ? scan<Bits, exponent>(numbers, n) : scan_avx2<Bits, exponent>(numbers, n);
}

// Of float32, bfloat16 or float16.
bool any_not_finite(const void* numbers, std::int64_t n, dtype type, isa which) {
  return type == dtype::f32    ? scan_by<std::uint32_t, 0x7F800000>(which, numbers, n)
         : type == dtype::bf16 ? scan_by<std::uint16_t, 0x7F80>(which, numbers, n)
                               : scan_by<std::uint16_t, 0x7C00>(which, numbers, n);
}

// Reads a parameter's part of a tensor by its byte ranges: rows are one range, columns one a row. In pieces that any thread may
// read, and those in blocks that stay in the processor's cache, so that nothing exists twice.
class part_reader {
public:
  part_reader(const tensor_info& tensor, const parameter& p, dtype compute_type, isa which)
      : tensor_(tensor), p_(p), type_(compute_type), which_(which), columns_(p.dim == 1 && p.shape[1] != tensor.shape[1]),
        width_(p.shape.size() > 1 ? tensor.shape[1] : 1), length_(columns_ ? p.shape[1] : std::int64_t(p.numel())),
        all_(columns_ ? p.shape[0] : length_), some_(columns_ ? std::max<std::int64_t>(1, piece / length_) : piece), left_(pieces()) {}

  std::int64_t pieces() const { return (all_ + some_ - 1) / some_; }
  std::uint64_t bytes() const { return p_.numel() * size_of(tensor_.type); }
  const tensor_info& tensor() const { return tensor_; }

  /// Whether it was the last one. Each piece once, by any thread.
  bool read(std::int64_t i) {
    const std::int64_t begin = i * some_, end = std::min(all_, begin + some_);
    const std::int64_t first = columns_ ? p_.begin : p_.begin * width_;
    if (!columns_)
      take(first + begin, begin, end - begin);
    for (std::int64_t r = begin; columns_ && r < end; ++r)
      take(first + r * width_, r * length_, length_);
    return --left_ == 0;
  }
  bool refused() const { return bad_ != none; }
  /// Throws when a number was not finite, naming the first.
  void check(const std::string& file) const {
    if (refused())
      throw error{errc::bad_input, file + ": tensor " + p_.name + " holds " + (std::isnan(number(bad_)) ? "NaN" : "infinity") +
                                       " at element " + std::to_string(bad_) + "; weights must be finite"};
  }

private:
  static constexpr std::int64_t piece = 1 << 18, block = 1 << 12, none = std::numeric_limits<std::int64_t>::max();

  const std::byte* source(std::int64_t at) const { return tensor_.bytes.data() + std::size_t(at) * size_of(tensor_.type); }

  void take(std::int64_t from, std::int64_t to, std::int64_t count) {
    for (std::int64_t at = 0; at < count; at += block)
      take_block(from + at, to + at, std::min(block, count - at));
  }

  void take_block(std::int64_t from, std::int64_t to, std::int64_t count) {
    std::byte* value = p_.value.data() + std::size_t(to) * size_of(type_);
    if (p_.master.empty() && tensor_.type != dtype::f64) { // a float64 may be finite and no float32
      if (any_not_finite(source(from), count, tensor_.type, which_))
        mark(from, count);
      convert_elements(tensor_.type, source(from), type_, value, std::size_t(count), which_);
      return;
    }
    std::array<float, block> room;
    float* as_f32 = !p_.master.empty() ? p_.master.data() + to : type_ == dtype::f32 ? reinterpret_cast<float*>(value) : room.data();
    convert_elements(tensor_.type, source(from), dtype::f32, reinterpret_cast<std::byte*>(as_f32), std::size_t(count), which_);
    if (any_not_finite(as_f32, count, dtype::f32, which_))
      mark(from, count);
    if (static_cast<const void*>(as_f32) != static_cast<const void*>(value))
      convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(as_f32), type_, value, std::size_t(count), which_);
  }

  float number(std::int64_t at) const {
    float f = 0;
    convert_elements(tensor_.type, source(at), dtype::f32, reinterpret_cast<std::byte*>(&f), 1);
    return f;
  }

  // Keeps the first element that is not finite, whoever finds it.
  void mark(std::int64_t from, std::int64_t count) {
    while (count-- > 0 && std::isfinite(number(from)))
      ++from;
    for (std::int64_t first = bad_; from < first && !bad_.compare_exchange_weak(first, from);) {
    }
  }

  const tensor_info& tensor_;
  const parameter& p_;
  const dtype type_;
  const isa which_;
  const bool columns_;
  const std::int64_t width_, length_, all_, some_; // elements of a row of the tensor; of a range; ranges or elements, and those of a piece
  std::atomic<std::int64_t> left_, bad_{none};
};

// All pieces of all tensors by the pool's threads; one after the other where there is none.
class weights_reader {
public:
  weights_reader(const safetensors_reader& files, causal_lm& model, const load_options& options) : files_(files), options_(options) {
    const isa which = options.where != nullptr ? options.where->which() : isa::scalar;
    for (const parameter& p : model.parameters())
      if (const tensor_info* found = files.find(p.name)) { // else optional, zero
        parts_.emplace_back(*found, p, model.compute_type(), which);
        all_ += parts_.back().bytes();
      }
  }

  std::uint64_t read() {
    std::vector<job> shared, own;
    for (auto& part : parts_) {
      // The pool's arithmetic takes subnormals as zero, and float64 alone is converted by arithmetic.
      auto& jobs = part.tensor().type == dtype::f64 || options_.where == nullptr ? own : shared;
      for (std::int64_t i = 0; i < part.pieces(); ++i)
        jobs.push_back({&part, i});
    }
    std::atomic<std::size_t> next{0};
    if (!shared.empty())
      options_.where->pool().run([&](int t) {
        for (std::size_t i; !refused_ && (i = next.fetch_add(1, std::memory_order_relaxed)) < shared.size();)
          run(shared[i], t == 0);
      });
    for (std::size_t i = 0; i < own.size() && !refused_; ++i)
      run(own[i], true);
    for (const auto& part : parts_)
      part.check(files_.path().string());
    if (options_.progress)
      options_.progress(all_, all_);
    return all_;
  }

private:
  struct job {
    part_reader* part;
    std::int64_t piece;
  };
  void run(const job& j, bool tells) {
    if (j.part->read(j.piece)) {
      files_.release(j.part->tensor());
      read_ += j.part->bytes();
    }
    if (j.part->refused())
      refused_ = true;
    if (tells && options_.progress && read_ < all_)
      options_.progress(read_, all_);
  }

  const safetensors_reader& files_;
  const load_options& options_;
  std::deque<part_reader> parts_;
  std::uint64_t all_ = 0;
  std::atomic<std::uint64_t> read_{0}; // of whole tensors
  std::atomic<bool> refused_{false};
};

} // namespace

std::uint64_t load_weights(causal_lm& model, const std::filesystem::path& dir, const load_options& options) {
  const safetensors_reader files{dir};
  check_tensors(files, model.config());
  check_tied_head(files, model.config());
  const std::uint64_t bytes = weights_reader(files, model, options).read();
  model.publish_values();
  return bytes;
}

} // namespace troupe
