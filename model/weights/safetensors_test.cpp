#include "model/config.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"
#include <rapidcheck/gtest.h>
#include <sys/stat.h>

namespace troupe {
namespace {

using test::message_of;
using test::reference;
using test::scratch;

std::string with_length(const std::string& header, std::size_t n_data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + std::string(n_data, '\0');
}

std::string entry(const std::string& name, const std::string& shape, std::size_t begin, std::size_t end, const std::string& type = "F32") {
  return "\"" + name + R"(":{"dtype":")" + type + R"(","shape":)" + shape + ",\"data_offsets\":[" + std::to_string(begin) + "," +
         std::to_string(end) + "]}";
}

std::vector<double> values_of(const tensor_info& info) {
  std::vector<double> out(info.n_bytes / size_of(info.type));
  convert_elements(info.type, info.bytes.data(), dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}

TEST(safetensors, reads_what_the_python_package_writes) {
  const safetensors_reader reader(reference("mixed.safetensors"));
  ASSERT_EQ(reader.tensors().size(), 6u);
  struct row {
    const char* name;
    dtype type;
    std::vector<std::int64_t> shape;
  };
  for (const auto& [name, type, shape] :
       {row{"a.weight", dtype::f32, {3, 5}}, row{"b", dtype::bf16, {7}}, row{"half", dtype::f16, {1, 2, 3}}}) {
    const auto* info = reader.find(name);
    ASSERT_NE(info, nullptr) << name;
    EXPECT_EQ(info->type, type) << name;
    EXPECT_EQ(info->shape, shape) << name;
    const auto values = values_of(*info);
    for (std::size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(values[i], (double(i) - 4) / 8) << name << " " << i;
  }
  const auto* ids = reader.find("ids");
  ASSERT_EQ(ids->type, dtype::i64);
  for (std::int64_t i = 0; i < 4; ++i) {
    std::int64_t value;
    std::memcpy(&value, ids->bytes.data() + i * 8, 8);
    EXPECT_EQ(value, i - 2);
  }
  EXPECT_EQ(reader.find("scalar")->shape, std::vector<std::int64_t>{});
  EXPECT_EQ(values_of(*reader.find("scalar")), std::vector<double>{2.5});
  EXPECT_EQ(reader.find("empty")->shape, (std::vector<std::int64_t>{0, 3}));
  EXPECT_EQ(reader.find("empty")->n_bytes, 0u);
  EXPECT_EQ(reader.find("absent"), nullptr);
}

TEST(safetensors, writes_the_bytes_of_the_python_package) {
  const scratch dir;
  const safetensors_reader reader(reference("mixed.safetensors"));
  std::vector<tensor_to_write> tensors;
  for (const auto* name : {"a.weight", "b", "empty", "half", "ids", "scalar"}) {
    const auto* info = reader.find(name);
    tensors.push_back({name, info->type, info->shape, info->bytes});
  }
  // The package sorts by dtype before name; within one width the order here is the caller's.
  std::swap(tensors[0], tensors[4]);
  std::swap(tensors[1], tensors[5]);
  write_safetensors(dir.path(), tensors);
  const safetensors_reader again(dir.path());
  for (const auto& [name, info] : reader.tensors()) {
    ASSERT_NE(again.find(name), nullptr);
    EXPECT_TRUE(std::equal(info.bytes.begin(), info.bytes.end(), again.find(name)->bytes.begin(), again.find(name)->bytes.end())) << name;
  }
  // One dtype: nothing is left to choose, so the whole file must agree.
  const safetensors_reader uniform(reference("quants.safetensors"));
  std::vector<tensor_to_write> same;
  for (const auto& [name, info] : uniform.tensors())
    same.push_back({name, info.type, info.shape, info.bytes});
  write_safetensors_file(dir / "uniform.safetensors", same);
  const auto text = read_file(dir / "uniform.safetensors");
  EXPECT_TRUE(text == read_file(reference("quants.safetensors")));
}

struct lie {
  const char* name;
  std::string file;
  const char* message;
  errc code = errc::bad_input;
};

std::vector<lie> lies() {
  const std::string over(8, '\xff');
  return {
      {"empty", "", "cannot read DIR/x.safetensors: it is empty"},
      {"short", "abc", "DIR/x.safetensors: truncated: 3 bytes, a safetensors file begins with 8 bytes of header length"},
      {"length_over_cap", over + "{}",
       "DIR/x.safetensors: header length 18446744073709551615 is over the limit of 100000000; this is not a safetensors file"},
      {"length_over_file", std::string("\x10\0\0\0\0\0\0\0{}", 10),
       "DIR/x.safetensors: truncated: header length 16, but only 2 bytes follow"},
      {"no_header", std::string(8, '\0'), "DIR/x.safetensors: the header must begin with {"},
      {"leading_space", with_length(" {}", 0), "DIR/x.safetensors: the header must begin with {"},
      {"not_json", with_length("{\"a\":}", 0),
       "DIR/x.safetensors: header: not JSON: at line 1, column 6: syntax error while parsing value - unexpected '}'; expected '[', '{', or "
       "a literal"},
      {"not_utf8", with_length("{\"\xff\":1}", 0),
       "DIR/x.safetensors: header: not JSON: at line 1, column 3: syntax error while parsing object key - invalid string: ill-formed UTF-8 "
       "byte; last read: "
       "'\"?'; expected string literal"},
      {"deep", with_length("{\"a\":" + std::string(70, '[') + std::string(70, ']') + "}", 0),
       "DIR/x.safetensors: header: nested deeper than 64 levels"},
      {"twice", with_length("{" + entry("a", "[1]", 0, 4) + "," + entry("a", "[1]", 4, 8) + "}", 8),
       "DIR/x.safetensors: header: key \"a\" occurs twice"},
      {"twice_inside", with_length(R"({"a":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}})", 4),
       "DIR/x.safetensors: header: key \"dtype\" occurs twice"},
      {"metadata_type", with_length(R"({"__metadata__":{"a":1}})", 0),
       "DIR/x.safetensors: __metadata__: \"a\" must be a string, found number"},
      {"metadata_list", with_length(R"({"__metadata__":[]})", 0), "DIR/x.safetensors: __metadata__ must be an object, found array"},
      {"entry_type", with_length(R"({"a":1})", 0), "DIR/x.safetensors: tensor \"a\": its entry must be an object, found number"},
      {"no_dtype", with_length(R"({"a":{"shape":[],"data_offsets":[0,4]}})", 4), "DIR/x.safetensors: tensor \"a\": has no \"dtype\""},
      {"dtype_type", with_length(R"({"a":{"dtype":1,"shape":[],"data_offsets":[0,4]}})", 4),
       "DIR/x.safetensors: tensor \"a\": \"dtype\" must be a string, found number"},
      {"dtype_unknown", with_length("{" + entry("a", "[1]", 0, 4, "F33") + "}", 4),
       "DIR/x.safetensors: tensor \"a\": unknown dtype \"F33\""},
      {"dtype_known", with_length("{" + entry("a", "[4]", 0, 4, "F8_E4M3") + "}", 4),
       "DIR/x.safetensors: tensor \"a\": dtype F8_E4M3; this version reads F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL",
       errc::unsupported},
      {"shape_negative", with_length("{" + entry("a", "[-1]", 0, 4) + "}", 4),
       "DIR/x.safetensors: tensor \"a\": shape [-1]: every entry must be an integer from 0 to 2^63 - 1"},
      {"shape_float", with_length("{" + entry("a", "[1.0]", 0, 4) + "}", 4),
       "DIR/x.safetensors: tensor \"a\": shape [1.0]: every entry must be an integer from 0 to 2^63 - 1"},
      {"shape_huge", with_length("{" + entry("a", "[18446744073709551615]", 0, 4) + "}", 4),
       "DIR/x.safetensors: tensor \"a\": shape [18446744073709551615]: every entry must be an integer from 0 to 2^63 - 1"},
      {"shape_overflow", with_length("{" + entry("a", "[4294967296,4294967296]", 0, 0) + "}", 0),
       "DIR/x.safetensors: tensor \"a\": shape is too large to count its bytes in 64 bits"},
      {"shape_zero_hides_overflow", with_length("{" + entry("a", "[4294967296,4294967296,0]", 0, 0) + "}", 0),
       "DIR/x.safetensors: tensor \"a\": shape is too large to count its bytes in 64 bits"},
      {"offsets_count", with_length(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0]}})", 4),
       "DIR/x.safetensors: tensor \"a\": data_offsets [0]: two integers from 0 are wanted"},
      {"offsets_negative", with_length(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[-4,0]}})", 4),
       "DIR/x.safetensors: tensor \"a\": data_offsets [-4,0]: two integers from 0 are wanted"},
      {"offsets_reversed", with_length("{" + entry("a", "[1]", 4, 0) + "}", 4),
       "DIR/x.safetensors: tensor \"a\": data_offsets [4,0]: begins after its end"},
      {"offsets_beyond", with_length("{" + entry("a", "[2]", 0, 8) + "}", 4),
       "DIR/x.safetensors: tensor \"a\": data_offsets [0,8]: the file has only 4 bytes of data"},
      {"length_differs", with_length("{" + entry("a", "[2]", 0, 4) + "}", 4),
       "DIR/x.safetensors: tensor \"a\": data_offsets span 4 bytes, its shape and dtype need 8"},
      {"overlap", with_length("{" + entry("a", "[2]", 0, 8) + "," + entry("b", "[2]", 4, 12) + "}", 12),
       "DIR/x.safetensors: tensors \"a\" and \"b\" overlap"},
      {"same_place", with_length("{" + entry("a", "[2]", 0, 8) + "," + entry("b", "[2]", 0, 8) + "}", 8),
       "DIR/x.safetensors: tensors \"a\" and \"b\" overlap"},
      {"gap", with_length("{" + entry("a", "[1]", 0, 4) + "," + entry("b", "[1]", 8, 12) + "}", 12),
       "DIR/x.safetensors: bytes 4 to 8 of the data belong to no tensor"},
      {"gap_at_start", with_length("{" + entry("a", "[1]", 4, 8) + "}", 8),
       "DIR/x.safetensors: bytes 0 to 4 of the data belong to no tensor"},
      {"rest", with_length("{" + entry("a", "[1]", 0, 4) + "}", 5),
       "DIR/x.safetensors: the tensors end at byte 4 of the data, the file has 5"},
      {"control_characters", with_length(R"({"a\n\u0001\"":1})", 0),
       "DIR/x.safetensors: tensor \"a\\x0a\\x01\\\"\": its entry must be an object, found number"},
  };
}

TEST(safetensors, names_the_lie_of_a_header) {
  const scratch dir;
  for (const auto& [name, bytes, message, code] : lies()) {
    const auto file = dir.put("x.safetensors", bytes);
    EXPECT_EQ(message_of(dir.path(), code, [&] { safetensors_reader reader(file); }), message) << name;
  }
}

TEST(safetensors, names_the_lie_of_an_index) {
  const std::string a = with_length("{" + entry("a", "[1]", 0, 4) + "}", 4), b = with_length("{" + entry("b", "[1]", 0, 4) + "}", 4);
  const std::pair<std::string, const char*> rows[] = {
      {"", "cannot read DIR/model.safetensors.index.json: it is empty"},
      {"[]", "DIR/model.safetensors.index.json: a JSON object is wanted, found array"},
      {"{}", "DIR/model.safetensors.index.json: has no \"weight_map\""},
      {R"({"weight_map":1})", "DIR/model.safetensors.index.json: \"weight_map\" must be an object, found number"},
      {R"({"weight_map":{}})", "DIR/model.safetensors.index.json: \"weight_map\" is empty"},
      {R"({"weight_map":{"a":1}})", "DIR/model.safetensors.index.json: weight_map: \"a\" must name a file, found number"},
      {R"({"weight_map":{"a":"../1"}})",
       "DIR/model.safetensors.index.json: weight_map: \"a\" names \"../1\"; a shard lies in the index's directory"},
      {R"({"weight_map":{"a":".."}})",
       "DIR/model.safetensors.index.json: weight_map: \"a\" names \"..\"; a shard lies in the index's directory"},
      {R"({"weight_map":{"a":"/etc/passwd"}})",
       "DIR/model.safetensors.index.json: weight_map: \"a\" names \"/etc/passwd\"; a shard lies in the index's directory"},
      {R"({"weight_map":{"a":""}})",
       "DIR/model.safetensors.index.json: weight_map: \"a\" names \"\"; a shard lies in the index's directory"},
      {R"({"weight_map":{"a":"1","a":"2"}})", "DIR/model.safetensors.index.json: key \"a\" occurs twice"},
      {R"({"weight_map":{"a":"3"}})", "DIR/model.safetensors.index.json: weight_map names \"3\", which does not exist"},
      {R"({"weight_map":{"a":"1","c":"2"}})", "DIR/2: tensor \"b\" is not in model.safetensors.index.json"},
      {R"({"weight_map":{"a":"1","b":"2","c":"2"}})",
       "DIR/model.safetensors.index.json: weight_map places \"c\" in \"2\", which has no such tensor"},
      {R"({"weight_map":{"a":"1","b":"1"}})",
       "DIR/model.safetensors.index.json: weight_map places \"b\" in \"1\", which has no such tensor"},
      {R"({"weight_map":{"a":"1","b":"3"}})", "DIR/model.safetensors.index.json: weight_map names \"3\", which does not exist"},
      {R"({"weight_map":{"a":"2","b":"1"}})", "DIR/1: tensor \"a\" is here, but model.safetensors.index.json places it in \"2\""},
      {R"({"weight_map":{"a":"1","b":"2"}})", ""},
  };
  for (const auto& [index, message] : rows) {
    const scratch dir;
    dir.put("1", a);
    dir.put("2", b);
    dir.put("model.safetensors.index.json", index);
    EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { safetensors_reader reader(dir.path()); }), message) << index;
  }
}

TEST(safetensors, says_what_a_directory_lacks) {
  const scratch dir;
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { safetensors_reader reader(dir.path()); }),
            "DIR: holds neither model.safetensors nor model.safetensors.index.json; a Hugging Face model directory is wanted");
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { safetensors_reader reader(dir / "none"); }),
            "cannot read DIR/none: No such file or directory");
}

// What an archive may put in a model's directory instead of a file; `make` gets its name.
struct impostor {
  const char* name;
  void (*make)(const std::filesystem::path&);
  const char* message;
};
constexpr impostor impostors[] = {
    {"loop", [](const std::filesystem::path& file) { std::filesystem::create_symlink(file.filename(), file); },
     "cannot read DIR/FILE: Too many levels of symbolic links"},
    {"nowhere", [](const std::filesystem::path& file) { std::filesystem::create_symlink("none", file); },
     "cannot read DIR/FILE: No such file or directory"},
    {"endless", [](const std::filesystem::path& file) { std::filesystem::create_symlink("/dev/zero", file); },
     "cannot read DIR/FILE: it is not a regular file"},
    {"pipe", [](const std::filesystem::path& file) { ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0); },
     "cannot read DIR/FILE: it is not a regular file"},
    {"directory", [](const std::filesystem::path& file) { std::filesystem::create_directory(file); },
     "cannot read DIR/FILE: it is a directory"},
};

TEST(safetensors, says_what_stands_in_a_files_place) {
  const auto expect = [](const char* file, auto read) {
    for (const auto& [name, make, message] : impostors) {
      const scratch dir;
      dir.put("model.safetensors.index.json", R"({"weight_map":{"a":"1"}})");
      std::filesystem::remove(dir / file);
      make(dir / file);
      std::string wanted = message;
      wanted.replace(wanted.find("FILE"), 4, file);
      EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { read(dir.path()); }), wanted) << name;
    }
  };
  for (const char* file : {"model.safetensors", "model.safetensors.index.json", "1"})
    expect(file, [](const auto& dir) { safetensors_reader reader(dir); });
  expect("config.json", [](const auto& dir) { load_model_config(dir); });
  expect("generation_config.json", [](const auto& dir) { load_eos_token_ids(dir, {}); });
}

RC_GTEST_PROP(safetensors, reads_back_what_it_wrote, ()) {
  const auto n = *rc::gen::inRange<std::size_t>(0, 6);
  std::vector<std::string> data;
  std::vector<tensor_to_write> tensors;
  for (std::size_t i = 0; i < n; ++i) {
    const auto type = dtype(*rc::gen::inRange(0, int(dtype::boolean) + 1));
    const auto shape = *rc::gen::container<std::vector<std::int64_t>>(rc::gen::inRange<std::int64_t>(0, 5));
    std::size_t bytes = size_of(type);
    for (const auto dim : shape)
      bytes *= std::size_t(dim);
    RC_PRE(bytes < 4096u);
    data.push_back(*rc::gen::container<std::string>(bytes, rc::gen::arbitrary<char>()));
    tensors.push_back({"t" + std::to_string(i) + "\"\\\xc3\xbc", type, shape, {}});
  }
  for (std::size_t i = 0; i < n; ++i)
    tensors[i].bytes = std::as_bytes(std::span(data[i]));
  const auto max_shard = *rc::gen::inRange<std::size_t>(1, 2000);
  const scratch dir;
  write_safetensors(dir.path(), tensors, max_shard);
  const safetensors_reader reader(dir.path());
  RC_ASSERT(reader.tensors().size() == n);
  for (const auto& tensor : tensors) {
    const auto* info = reader.find(tensor.name);
    RC_ASSERT(info != nullptr);
    RC_ASSERT(info->type == tensor.type);
    RC_ASSERT(info->shape == tensor.shape);
    RC_ASSERT(std::equal(info->bytes.begin(), info->bytes.end(), tensor.bytes.begin(), tensor.bytes.end()));
    RC_ASSERT(info->n_bytes == 0u || reinterpret_cast<std::uintptr_t>(info->bytes.data()) % size_of(info->type) == 0u);
  }
}

TEST(safetensors, shards_hold_at_most_their_limit) {
  const scratch dir;
  const std::string data(100, 'x');
  std::vector<tensor_to_write> tensors;
  for (const int size : {40, 40, 30, 100, 10})
    tensors.push_back({"t" + std::to_string(tensors.size()), dtype::u8, {size}, std::as_bytes(std::span(data)).first(std::size_t(size))});
  write_safetensors(dir.path(), tensors, 80);
  const std::vector<std::size_t> wanted[] = {{40, 40}, {30}, {100}, {10}};
  for (std::size_t i = 0; i < 4; ++i) {
    const safetensors_reader shard(dir / ("model-0000" + std::to_string(i + 1) + "-of-00004.safetensors"));
    std::vector<std::size_t> sizes;
    for (const auto& [name, info] : shard.tensors())
      sizes.push_back(info.n_bytes);
    EXPECT_EQ(sizes, wanted[i]) << i;
  }
}

TEST(safetensors, refuses_to_write_nonsense) {
  const scratch dir;
  const std::string four(4, '\0');
  const auto bytes = std::as_bytes(std::span(four));
  const std::pair<std::vector<tensor_to_write>, const char*> rows[] = {
      {{{"a", dtype::f32, {2}, bytes}}, "tensor \"a\": 4 bytes given, its shape and dtype need 8"},
      {{{"a", dtype::f32, {-1}, bytes}}, "tensor \"a\": its shape has a negative entry or overflows"},
      {{{"a", dtype::f32, {1}, bytes}, {"a", dtype::f32, {1}, bytes}}, "tensor \"a\" is given twice"},
      {{{"__metadata__", dtype::f32, {1}, bytes}}, "tensor \"__metadata__\": no tensor can have that name in a safetensors file"},
  };
  for (const auto& [tensors, message] : rows)
    EXPECT_EQ(message_of(dir.path(), errc::bad_shape, [&, tensors = tensors] { write_safetensors(dir.path(), tensors); }), message);
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  const std::vector<tensor_to_write> good = {{"a", dtype::f32, {1}, bytes}};
  EXPECT_EQ(message_of(dir.path(), errc::io, [&] { write_safetensors(dir / "none", good); }),
            "cannot write DIR/none/model.safetensors: No such file or directory");
}

TEST(safetensors, leaves_nothing_when_a_tensor_cannot_be_made) {
  const scratch dir;
  const std::vector<tensor_to_make> tensors = {{"a", dtype::f32, {1}, [](std::span<std::byte>) { throw error(errc::failed, "no"); }}};
  EXPECT_EQ(message_of(dir.path(), errc::failed, [&] { write_safetensors(dir.path(), tensors); }), "no");
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

} // namespace
} // namespace troupe
