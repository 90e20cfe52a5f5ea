#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace troupe {

/// CRC-32C (Castagnoli) of some bytes. Pure.
std::uint32_t crc32c(std::string_view bytes) noexcept;

/// One record of TensorFlow's record format: length, its masked CRC, the bytes, their masked CRC; little endian.
std::string tfrecord(std::string_view bytes);

} // namespace troupe
