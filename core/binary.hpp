#pragma once
#include "core/error.hpp"
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace troupe {

static_assert(std::endian::native == std::endian::little, "wire and file formats are little endian");

template <class T>
concept wire_number = std::is_arithmetic_v<T> && !std::is_same_v<T, bool>;

/// Builds a little endian message: numbers, and arrays and strings behind a 32-bit count. One thread.
class byte_writer {
public:
  template <wire_number T>
  void put(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  template <wire_number T>
  void put_array(std::span<const T> values) {
    put(std::uint32_t(values.size()));
    out_.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  }
  void put_string(std::string_view text) { put_array(std::span<const char>(text.data(), text.size())); }
  std::string take() { return std::move(out_); }

private:
  std::string out_;
};

/// Reads such a message. Every count is checked against the bytes that are left before anything is allocated.
/// `what` stands in messages and must outlive the reader. Throws errc::bad_input.
class byte_reader {
public:
  byte_reader(std::string_view in, const char* what) : in_(in), what_(what) {}

  template <wire_number T>
  T get() {
    T value;
    std::memcpy(&value, need(sizeof(T)), sizeof(T));
    return value;
  }
  template <wire_number T>
  std::vector<T> get_array() {
    std::vector<T> values(get_count(sizeof(T)));
    if (!values.empty())
      std::memcpy(values.data(), need(values.size() * sizeof(T)), values.size() * sizeof(T));
    return values;
  }
  std::string get_string() {
    const std::uint32_t n = get_count(1);
    return std::string(need(n), n);
  }
  /// A count of things of which each takes at least `bytes_each` of what follows.
  std::uint32_t get_count(std::size_t bytes_each) {
    const auto n = get<std::uint32_t>();
    if (n > (in_.size() - at_) / bytes_each)
      fail("a count of " + std::to_string(n) + " does not fit in the " + std::to_string(in_.size() - at_) + " bytes left");
    return n;
  }
  /// The message must end here.
  void finish() const {
    if (at_ != in_.size())
      fail(std::to_string(in_.size() - at_) + " bytes too many");
  }
  [[noreturn]] void fail(const std::string& reason) const {
    throw error(errc::bad_input,
                std::string(what_) + ": " + reason + " at byte " + std::to_string(at_) + " of " + std::to_string(in_.size()));
  }

private:
  const char* need(std::size_t n) {
    if (n > in_.size() - at_)
      fail("cut short: " + std::to_string(n) + " bytes expected");
    const char* p = in_.data() + at_;
    at_ += n;
    return p;
  }

  std::string_view in_;
  const char* what_;
  std::size_t at_ = 0;
};

} // namespace troupe
