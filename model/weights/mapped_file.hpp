#pragma once
#include <cstddef>
#include <filesystem>
#include <span>

namespace troupe {

/// A regular file mapped for reading. The bytes live as long as the object, also after a move.
/// Throws errc::bad_input naming the file and the reason; an empty file is refused.
class mapped_file {
public:
  explicit mapped_file(const std::filesystem::path& file);
  ~mapped_file();
  mapped_file(mapped_file&& other) noexcept;
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }

private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

} // namespace troupe
