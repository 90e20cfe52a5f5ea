// Damaged files must be refused by a troupe::error or read; run it under the asan preset too.
#include "model/config.hpp"
#include "model/weights/convert.hpp"
#include "model/weights/gguf.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"
#include <random>

namespace troupe {
namespace {

using test::memory_file;
using test::reference;
using test::scratch;

/// One random change: a bit, a cut, a piece moved over another, a number made extreme.
class mutator {
public:
  explicit mutator(std::uint64_t seed) : random_(seed) {}

  std::string operator()(std::string bytes) {
    for (std::size_t changes = 1 + below(3); changes > 0 && !bytes.empty(); --changes)
      change(bytes);
    return bytes;
  }

private:
  std::size_t below(std::size_t n) { return std::size_t(random_() % n); }

  void change(std::string& bytes) {
    // Headers are where the reading is; half of the changes stay in the first kilobyte.
    const auto reach = below(2) == 0 ? std::min<std::size_t>(bytes.size(), 1024) : bytes.size();
    const auto at = below(reach);
    switch (below(6)) {
    case 0:
      bytes[at] = char(bytes[at] ^ (1 << below(8)));
      break;
    case 1:
      bytes.resize(at);
      break;
    case 2:
      bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(40)));
      break;
    case 3:
      bytes.erase(at, 1 + below(40));
      break;
    case 4:
      binary_number(bytes, at);
      break;
    default:
      decimal_number(bytes, at);
    }
  }

  void binary_number(std::string& bytes, std::size_t at) {
    constexpr std::uint64_t extremes[] = {
        0, 1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, std::uint64_t{1} << 32, std::uint64_t{1} << 62, INT64_MAX, UINT64_MAX};
    const auto value = extremes[below(std::size(extremes))];
    const auto width = std::min<std::size_t>(std::size_t{1} << below(4), bytes.size() - at);
    std::memcpy(bytes.data() + at, &value, width);
  }

  /// The next run of digits becomes another number.
  void decimal_number(std::string& bytes, std::size_t at) {
    constexpr const char* numbers[] = {"0",    "-1",  "1e999", "1.5", "4294967296", "9223372036854775807", "18446744073709551615",
                                       "1e30", "null"};
    const auto begin = bytes.find_first_of("0123456789", at);
    if (begin == std::string::npos)
      return;
    auto end = bytes.find_first_not_of("0123456789", begin);
    end = end == std::string::npos ? bytes.size() : end;
    bytes.replace(begin, end - begin, numbers[below(std::size(numbers))]);
  }

  std::mt19937_64 random_;
};

struct outcome {
  int accepted = 0, refused = 0;
};

template <class Read>
outcome survive(const std::string& good, int n, Read read) {
  outcome all;
  for (int seed = 0; seed < n; ++seed) {
    const auto bad = mutator(std::uint64_t(seed))(good);
    try {
      read(bad);
      ++all.accepted;
    } catch (const error& e) {
      EXPECT_EQ(std::string_view(e.what()).find('\n'), std::string_view::npos) << "seed " << seed << ": " << e.what();
      ++all.refused;
    }
  }
  return all;
}

TEST(mutations, no_beginning_of_a_file_is_taken_for_it) {
  const memory_file file;
  const auto refused = [](auto read) {
    try {
      read();
    } catch (const error&) {
      return true;
    }
    return false;
  };
  const auto tensors = read_file(reference("mixed.safetensors")), quants = read_file(reference("quants.gguf"));
  for (std::size_t n = 0; n < tensors.size(); ++n)
    ASSERT_TRUE(refused([&] { safetensors_reader(file.put(tensors.substr(0, n))); })) << n << " bytes of mixed.safetensors";
  constexpr std::size_t padding = 24; // after the last tensor
  for (std::size_t n = 0; n < quants.size() - padding; ++n)
    ASSERT_TRUE(refused([&] { gguf_reader(file.put(quants.substr(0, n))); })) << n << " bytes of quants.gguf";
}

TEST(mutations, of_safetensors) {
  const memory_file file;
  const auto [accepted, refused] = survive(read_file(reference("mixed.safetensors")), 6000, [&](const std::string& bytes) {
    const safetensors_reader reader(file.put(bytes));
    for (const auto& [name, info] : reader.tensors()) {
      std::vector<std::byte> out(info.n_bytes);
      convert_elements(info.type, info.bytes.data(), info.type, out.data(), info.n_bytes / size_of(info.type));
    }
  });
  EXPECT_GT(refused, 1000);
  EXPECT_GT(accepted, 100);
}

TEST(mutations, of_an_index) {
  const scratch dir;
  const std::string data(16, '\1');
  const std::vector<tensor_to_write> tensors = {{"a", dtype::f32, {4}, std::as_bytes(std::span(data))},
                                                {"b", dtype::f32, {2, 2}, std::as_bytes(std::span(data))}};
  write_safetensors(dir.path(), tensors, 16);
  const auto name = "model.safetensors.index.json";
  const auto good = read_file(dir / name);
  const memory_file file;
  std::filesystem::remove(dir / name);
  std::filesystem::create_symlink(file.path(), dir / name);
  const auto [accepted, refused] = survive(good, 3000, [&](const std::string& bytes) {
    file.put(bytes);
    const safetensors_reader reader(dir.path());
  });
  EXPECT_GT(refused, 500);
  EXPECT_GT(accepted, 50);
}

TEST(mutations, of_a_config) {
  const scratch dir;
  convert_gguf(reference("llama.gguf"), dir / "out", dtype::f32);
  const auto [accepted, refused] = survive(read_file(dir / "out/config.json"), 6000, [](const std::string& bytes) {
    const auto cfg = parse_model_config(bytes, "config.json");
    parse_model_config(to_config_json(cfg, dtype::f32), "written");
  });
  EXPECT_GT(refused, 1000);
  EXPECT_GT(accepted, 100);
}

TEST(mutations, of_gguf) {
  const memory_file file;
  for (const auto* name : {"llama.gguf", "quants.gguf", "metadata.gguf"}) {
    const auto [accepted, refused] = survive(read_file(reference(name)), 3000, [&](const std::string& bytes) {
      const gguf_reader reader(file.put(bytes));
      for (const auto& [tensor_name, tensor] : reader.tensors()) {
        std::vector<float> values(tensor.numel());
        dequantize(tensor.type, tensor.bytes, values.data());
      }
    });
    EXPECT_GT(refused, 300) << name;
    EXPECT_GT(accepted, 30) << name;
  }
}

TEST(mutations, of_gguf_through_the_conversion) {
  const scratch dir;
  const memory_file file;
  int written = 0;
  const auto [accepted, refused] = survive(read_file(reference("llama.gguf")), 60, [&](const std::string& bytes) {
    const auto target = dir / ("out" + std::to_string(written++));
    convert_gguf(file.put(bytes), target, dtype::bf16);
    // What was accepted must be a directory that can be read.
    load_model_config(target);
    const safetensors_reader reader(target);
  });
  EXPECT_GT(refused, 10);
  EXPECT_GT(accepted, 0);
}

} // namespace
} // namespace troupe
