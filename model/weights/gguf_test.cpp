#include "model/weights/gguf.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"

namespace troupe {
namespace {

using test::message_of;
using test::reference;
using test::scratch;

TEST(gguf, dequantises_to_the_bits_of_gguf_py) {
  const gguf_reader quants(reference("quants.gguf"));
  const safetensors_reader expected(reference("quants.safetensors"));
  ASSERT_EQ(quants.tensors().size(), 11u);
  for (const auto& [name, tensor] : quants.tensors()) {
    ASSERT_EQ(tensor.shape, (std::vector<std::int64_t>{4, 256})) << name;
    std::vector<float> values(tensor.numel());
    dequantize(tensor.type, tensor.bytes, values.data());
    const auto* wanted = expected.find(name);
    ASSERT_NE(wanted, nullptr) << name;
    ASSERT_EQ(wanted->n_bytes, values.size() * sizeof(float));
    const auto* found = reinterpret_cast<const std::byte*>(values.data());
    for (std::size_t i = 0; i < wanted->n_bytes; ++i)
      ASSERT_EQ(found[i], wanted->bytes[i]) << name << ", byte " << i % sizeof(float) << " of element " << i / sizeof(float);
  }
}

TEST(gguf, reads_a_value_of_every_type) {
  const gguf_reader file(reference("metadata.gguf"));
  const std::pair<const char*, std::int64_t> integers[] = {{"u8", 255},  {"u16", 65535},  {"u32", 4294967295}, {"u64", INT64_MAX},
                                                           {"i8", -128}, {"i16", -32768}, {"i32", INT32_MIN},  {"i64", INT64_MIN}};
  for (const auto& [key, value] : integers)
    EXPECT_EQ(file.integer(key), value) << key;
  EXPECT_EQ(file.number("f32"), 1e-5);
  EXPECT_EQ(file.number("f64"), 0.1);
  EXPECT_EQ(file.flag("yes"), true);
  EXPECT_EQ(file.flag("no"), false);
  EXPECT_EQ(file.text("text"), "d\xc3\xa9j\xc3\xa0\nvu");
  EXPECT_EQ(file.texts("texts"), (std::vector<std::string_view>{"a", "", "\xc3\xbc"}));
  EXPECT_EQ(file.integers("numbers"), (std::vector<std::int64_t>{1, -2, 3}));
  EXPECT_EQ(file.integer("absent"), std::nullopt);
  EXPECT_EQ(file.metadata().at("nested").count, 2u);
}

TEST(gguf, names_the_key_whose_type_is_another) {
  const gguf_reader file(reference("metadata.gguf"));
  const auto name = reference("metadata.gguf");
  const auto message = [&](auto call) { return message_of(name, errc::bad_input, call); };
  EXPECT_EQ(message([&] { file.integer("text"); }), "DIR: key \"text\" must be an integer, found string");
  EXPECT_EQ(message([&] { file.number("u8"); }), "DIR: key \"u8\" must be a float, found u8");
  EXPECT_EQ(message([&] { file.text("yes"); }), "DIR: key \"yes\" must be a string, found bool");
  EXPECT_EQ(message([&] { file.flag("f32"); }), "DIR: key \"f32\" must be a bool, found f32");
  EXPECT_EQ(message([&] { file.integer("numbers"); }), "DIR: key \"numbers\" must be an integer, found an array");
  EXPECT_EQ(message([&] { file.texts("numbers"); }), "DIR: key \"numbers\" must be an array of strings, found an array");
  EXPECT_EQ(message([&] { file.integers("i8"); }), "DIR: key \"i8\" must be an array of integers, found i8");
}

/// Puts a file together field by field.
struct bytes {
  std::string text;
  template <class T>
  bytes& put(T value) {
    text.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  bytes& u32(std::uint32_t value) { return put(value); }
  bytes& u64(std::uint64_t value) { return put(value); }
  bytes& string(std::string_view value) {
    put(std::uint64_t(value.size()));
    text += value;
    return *this;
  }
  bytes& tensor(std::string_view name, std::initializer_list<std::uint64_t> dims, std::uint32_t type, std::uint64_t offset) {
    string(name).u32(std::uint32_t(dims.size()));
    for (const auto dim : dims)
      u64(dim);
    return u32(type).u64(offset);
  }
  bytes& pad(std::size_t to) {
    text.resize(to, '\0');
    return *this;
  }
};

bytes header(std::uint64_t n_tensors, std::uint64_t n_keys, std::uint32_t version = 3) {
  bytes out{"GGUF"};
  return out.u32(version).u64(n_tensors).u64(n_keys);
}

struct lie {
  const char* name;
  bytes file;
  const char* message;
  errc code = errc::bad_input;
};

std::vector<lie> lies() {
  constexpr std::uint64_t huge = std::uint64_t{1} << 62;
  const auto key = [](std::uint32_t type) {
    auto out = header(0, 1);
    return out.string("k").u32(type);
  };
  return {
      {"empty", {}, "cannot read DIR/x.gguf: it is empty"},
      {"short", {"GG"}, "DIR/x.gguf: is not a GGUF file: it does not begin with GGUF"},
      {"magic", {"GGMLxxxxxxxx"}, "DIR/x.gguf: is not a GGUF file: it does not begin with GGUF"},
      {"no_version", {"GGUF"}, "DIR/x.gguf: truncated: version at byte 4 needs 4 bytes, 0 are left"},
      {"version_1", header(0, 0, 1), "DIR/x.gguf: GGUF version 1; this version reads little-endian 2 and 3", errc::unsupported},
      {"big_endian", header(0, 0, 0x03000000), "DIR/x.gguf: GGUF in big-endian order; this version reads little-endian 2 and 3",
       errc::unsupported},
      {"version_9", header(0, 0, 9), "DIR/x.gguf: GGUF version 9 is unknown; 2 and 3 can be read"},
      {"many_tensors", header(huge, 0), "DIR/x.gguf: tensor count 4611686018427387904 is more than the 8 bytes left can hold"},
      {"many_keys", header(0, huge), "DIR/x.gguf: metadata count 4611686018427387904 is more than the 0 bytes left can hold"},
      {"long_key", header(0, 1).u64(huge).u64(0),
       "DIR/x.gguf: truncated: a metadata key at byte 32 needs 4611686018427387904 bytes, 8 are left"},
      {"value_type", key(13).u64(0), "DIR/x.gguf: key \"k\": unknown value type 13"},
      {"value_cut", key(10).u32(1), "DIR/x.gguf: key \"k\": 1 values do not fit in the 4 bytes left"},
      {"bool", key(7).put('\2'), "DIR/x.gguf: key \"k\": a bool that is neither 0 nor 1"},
      {"long_text", key(8).u64(huge), "DIR/x.gguf: truncated: key \"k\" at byte 45 needs 4611686018427387904 bytes, 0 are left"},
      {"long_array", key(9).u32(4).u64(huge),
       "DIR/x.gguf: key \"k\": array length 4611686018427387904 is more than the 0 bytes left can hold"},
      {"wide_array", key(9).u32(4).u64(4).u64(0), "DIR/x.gguf: key \"k\": 4 values do not fit in the 8 bytes left"},
      {"deep_array", key(9).u32(9).u64(1).u32(9).u64(1).u32(9).u64(1).u32(9).u64(1).u32(9).u64(1).u32(0).u64(0),
       "DIR/x.gguf: key \"k\": arrays nested deeper than 4"},
      {"key_twice", header(0, 2).string("k").u32(0).put('\1').string("k").u32(0).put('\1'), "DIR/x.gguf: key \"k\" occurs twice"},
      {"alignment_0", header(0, 1).string("general.alignment").u32(4).u32(0),
       "DIR/x.gguf: general.alignment 0 is not a power of two up to 2^20"},
      {"alignment_24", header(0, 1).string("general.alignment").u32(4).u32(24),
       "DIR/x.gguf: general.alignment 24 is not a power of two up to 2^20"},
      {"no_dims", header(1, 0).tensor("t", {}, 0, 0).u64(0), "DIR/x.gguf: tensor \"t\": 0 dimensions, 1 to 4 are possible"},
      {"five_dims", header(1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0), "DIR/x.gguf: tensor \"t\": 5 dimensions, 1 to 4 are possible"},
      {"dim_0", header(1, 0).tensor("t", {0}, 0, 0), "DIR/x.gguf: tensor \"t\": shape entry 0 is out of range"},
      {"dim_huge", header(1, 0).tensor("t", {std::uint64_t{1} << 63}, 0, 0),
       "DIR/x.gguf: tensor \"t\": shape entry 9223372036854775808 is out of range"},
      {"type_known", header(1, 0).tensor("t", {256}, 23, 0),
       "DIR/x.gguf: tensor \"t\": type IQ4_XS; this version reads F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K",
       errc::unsupported},
      {"type_unknown", header(1, 0).tensor("t", {256}, 99, 0), "DIR/x.gguf: tensor \"t\": unknown type 99"},
      {"overflow", header(1, 0).tensor("t", {huge, 4}, 0, 0), "DIR/x.gguf: tensor \"t\": its shape overflows 64 bits"},
      {"overflow_bytes", header(1, 0).tensor("t", {huge}, 0, 0), "DIR/x.gguf: tensor \"t\": its size overflows 64 bits"},
      {"blocks", header(1, 0).tensor("t", {33}, 3, 0), "DIR/x.gguf: tensor \"t\": rows of 33 are not whole Q4_1 blocks of 32"},
      {"unaligned", header(1, 0).tensor("t", {1}, 0, 4).pad(200),
       "DIR/x.gguf: tensor \"t\": offset 4 is not a multiple of the alignment 32"},
      {"no_data", header(1, 0).tensor("t", {1}, 0, 0),
       "DIR/x.gguf: truncated: tensor \"t\" needs 4 bytes at offset 0, the file has 0 bytes of data"},
      {"data_cut", header(1, 0).tensor("t", {32}, 0, 0).pad(100),
       "DIR/x.gguf: truncated: tensor \"t\" needs 128 bytes at offset 0, the file has 36 bytes of data"},
      {"beyond", header(1, 0).tensor("t", {1}, 0, huge).pad(100),
       "DIR/x.gguf: truncated: tensor \"t\" needs 4 bytes at offset 4611686018427387904, the file has 36 bytes of data"},
      {"overlap", header(2, 0).tensor("t", {9}, 0, 0).tensor("u", {9}, 0, 32).pad(300),
       "DIR/x.gguf: tensor \"u\": overlaps the tensor before it"},
      {"tensor_twice", header(2, 0).tensor("t", {1}, 0, 0).tensor("t", {1}, 0, 32).pad(300), "DIR/x.gguf: tensor \"t\" occurs twice"},
  };
}

TEST(gguf, names_the_lie_of_a_file) {
  const scratch dir;
  for (const auto& [name, file, message, code] : lies()) {
    const auto path = dir.put("x.gguf", file.text);
    EXPECT_EQ(message_of(dir.path(), code, [&] { gguf_reader reader(path); }), message) << name;
  }
}

TEST(gguf, reads_version_2_and_a_chosen_alignment) {
  const scratch dir;
  auto file = header(1, 1, 2);
  file.string("general.alignment").u32(4).u32(8).tensor("t", {2, 1}, 0, 8);
  file.pad((file.text.size() + 7) / 8 * 8 + 8).put(1.5f).put(-2.0f);
  const gguf_reader reader(dir.put("x.gguf", file.text));
  const auto& tensor = reader.tensors().at("t");
  EXPECT_EQ(tensor.shape, (std::vector<std::int64_t>{1, 2}));
  float values[2];
  dequantize(tensor.type, tensor.bytes, values);
  EXPECT_EQ(values[0], 1.5f);
  EXPECT_EQ(values[1], -2.0f);
}

} // namespace
} // namespace troupe
