#include "core/error.hpp"
#include "core/files.hpp"
#include "core/metrics.hpp"
#include "core/tfrecord.hpp"
#include "core/trace.hpp"
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

namespace fs = std::filesystem;

namespace troupe {
namespace {

class metrics_test : public ::testing::Test {
protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "troupe-metrics-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string lines() const { return read_file(dir_ / "metrics.jsonl"); }
  std::string events() const {
    std::string all;
    for (const auto& entry : fs::directory_iterator(dir_))
      if (entry.path().filename().string().starts_with("events.out.tfevents."))
        all += read_file(entry.path());
    return all;
  }
  fs::path dir_;
};

// An independent reader of the wire format: protobuf's encoding document and TensorFlow's record_writer.h.
struct scalar {
  std::int64_t step;
  std::string tag;
  float value;
  bool operator==(const scalar&) const = default;
};

std::uint64_t little_endian(std::string_view bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i > 0; --i)
    value = value << 8 | static_cast<unsigned char>(bytes[i - 1]);
  return value;
}

struct wire_field {
  std::uint64_t number = 0, varint = 0;
  std::string_view bytes; // of fixed and length-delimited ones
};

std::uint64_t take_varint(std::string_view& in) {
  std::uint64_t value = 0;
  for (int shift = 0; !in.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(in[0]);
    in.remove_prefix(1);
    value |= std::uint64_t(byte & 0x7f) << shift;
    if (byte < 0x80)
      break;
  }
  return value;
}

std::vector<wire_field> fields_of(std::string_view in) {
  std::vector<wire_field> out;
  while (!in.empty()) {
    const std::uint64_t key = take_varint(in);
    wire_field f{key >> 3, 0, {}};
    const std::size_t size = (key & 7) == 1 ? 8 : (key & 7) == 5 ? 4 : (key & 7) == 2 ? take_varint(in) : 0;
    if ((key & 7) == 0)
      f.varint = take_varint(in);
    f.bytes = in.substr(0, size);
    in.remove_prefix(std::min(size, in.size()));
    out.push_back(f);
  }
  return out;
}

std::vector<scalar> scalars_of(std::string_view file) {
  std::vector<scalar> out;
  while (!file.empty()) {
    const std::size_t size = little_endian(file.substr(0, 8));
    std::int64_t step = 0;
    for (const auto& event : fields_of(file.substr(12, size))) {
      if (event.number == 2)
        step = std::int64_t(event.varint);
      if (event.number != 5)
        continue;
      for (const auto& value : fields_of(event.bytes)) {
        scalar s{step, "", std::numeric_limits<float>::quiet_NaN()};
        for (const auto& part : fields_of(value.bytes)) {
          if (part.number == 1)
            s.tag = part.bytes;
          if (part.number == 2)
            std::memcpy(&s.value, part.bytes.data(), 4);
        }
        out.push_back(s);
      }
    }
    file.remove_prefix(16 + size);
  }
  return out;
}

TEST(tfrecord, crc_is_castagnolis) {
  // Source: RFC 3720, appendix B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
}

TEST(tfrecord, frames_bytes_with_masked_checksums) {
  const std::string record = tfrecord("123456789");
  ASSERT_EQ(record.size(), 8 + 4 + 9 + 4u);
  EXPECT_EQ(little_endian(record.substr(0, 8)), 9u);
  EXPECT_EQ(record.substr(12, 9), "123456789");
  const std::uint32_t crc = 0xe3069283u;
  EXPECT_EQ(little_endian(record.substr(21)), std::uint32_t((crc >> 15 | crc << 17) + 0xa282ead8u));
}

TEST_F(metrics_test, a_line_has_the_step_first_and_numbers_that_round_trip) {
  const metric_map values = {{"actor/lr", 1e-5}, {"b", 0.1 + 0.2}, {"c", 1.0 / 3},
                             {"d", -0.0},        {"e", 5e-324},    {"f", 1.7976931348623157e308}};
  metric_sink(dir_, -1).write(1, values);
  EXPECT_EQ(lines().substr(0, 40), "{\"step\": 1, \"actor/lr\": 1e-05, \"b\": 0.30");
  const auto row = nlohmann::json::parse(lines());
  for (const auto& [name, value] : values) {
    EXPECT_EQ(std::bit_cast<std::uint64_t>(row[name].get<double>()), std::bit_cast<std::uint64_t>(value)) << name;
  }
}

TEST_F(metrics_test, what_is_no_number_becomes_null) {
  metric_sink(dir_, -1).write(0, {{"a", std::nan("")}, {"b", INFINITY}});
  EXPECT_EQ(lines(), "{\"step\": 0, \"a\": null, \"b\": null}\n");
}

TEST_F(metrics_test, a_step_is_written_once) {
  metric_sink sink(dir_, -1);
  sink.write(1, {{"a", 1}});
  sink.write(1, {{"a", 2}});
  sink.write(2, {{"a", 3}});
  EXPECT_EQ(lines(), "{\"step\": 1, \"a\": 1}\n{\"step\": 2, \"a\": 3}\n");
  EXPECT_EQ(scalars_of(events()), (std::vector<scalar>{{1, "a", 1}, {2, "a", 3}}));
}

TEST_F(metrics_test, zero_is_a_value_for_tensorboard_too) {
  metric_sink(dir_, -1).write(0, {{"val/accuracy", 0}});
  EXPECT_EQ(scalars_of(events()), (std::vector<scalar>{{0, "val/accuracy", 0}}));
}

TEST_F(metrics_test, resuming_drops_later_steps_and_a_half_written_line) {
  write_file(dir_ / "metrics.jsonl", "{\"step\": 0, \"a\": 1}\n{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3, \"a\": 0.");
  {
    metric_sink sink(dir_, 1);
    sink.write(1, {{"again", 1}});
    sink.write(2, {{"a", 5}});
  }
  EXPECT_EQ(lines(), "{\"step\": 0, \"a\": 1}\n{\"step\": 1}\n{\"step\": 2, \"a\": 5}\n");
}

TEST_F(metrics_test, a_whole_last_line_without_its_end_is_kept) {
  write_file(dir_ / "metrics.jsonl", "{\"step\": 1}");
  metric_sink(dir_, 1).write(2, {});
  EXPECT_EQ(lines(), "{\"step\": 1}\n{\"step\": 2}\n");
}

TEST_F(metrics_test, damage_is_named_with_its_line) {
  for (const char* bad : {"nonsense", "[1]", "{\"a\": 1}", "{\"step\": 1.5}", "{\"step\": \"1\"}"}) {
    write_file(dir_ / "metrics.jsonl", "{\"step\": 0}\n" + std::string(bad) + "\n{\"step\": 2}\n");
    try {
      const metric_sink sink(dir_, 5);
      ADD_FAILURE() << bad;
    } catch (const error& e) {
      EXPECT_EQ(e.code(), errc::bad_input);
      EXPECT_EQ(std::string(e.what()),
                (dir_ / "metrics.jsonl").string() + ":2: not a line of metrics, an object with an integer \"step\"; the file is damaged");
    }
  }
}

TEST_F(metrics_test, a_directory_that_is_missing_is_named) {
  try {
    const metric_sink sink(dir_ / "none", -1);
    ADD_FAILURE();
  } catch (const error& e) {
    EXPECT_EQ(e.code(), errc::io);
    EXPECT_EQ(std::string(e.what()), "cannot write " + (dir_ / "none" / "metrics.jsonl").string() + ": No such file or directory");
  }
}

TEST_F(metrics_test, a_trace_holds_the_spans_of_all_threads_between_start_and_stop) {
  { trace_span before("before"); }
  start_trace(dir_ / "trace.json");
  {
    trace_span outer("outer");
    trace_span inner("inner \"quoted\"");
    std::thread([] { trace_span other("other"); }).join();
  }
  stop_trace();
  { trace_span after("after"); }
  stop_trace(); // nothing is under way: nothing is written
  const auto spans = nlohmann::json::parse(read_file(dir_ / "trace.json"))["traceEvents"];
  ASSERT_EQ(spans.size(), 3u);
  EXPECT_EQ(spans[0]["name"], "other");
  EXPECT_EQ(spans[1]["name"], "inner \"quoted\"");
  EXPECT_EQ(spans[2]["name"], "outer");
  EXPECT_NE(spans[0]["tid"], spans[2]["tid"]);
  EXPECT_EQ(spans[1]["tid"], spans[2]["tid"]);
  for (const auto& span : spans) {
    EXPECT_EQ(span["ph"], "X");
    EXPECT_GE(span["ts"].get<double>(), spans[2]["ts"].get<double>()) << "inside the outer one";
    EXPECT_LE(span["ts"].get<double>() + span["dur"].get<double>(), spans[2]["ts"].get<double>() + spans[2]["dur"].get<double>() + 1e-3);
  }
}

} // namespace
} // namespace troupe
