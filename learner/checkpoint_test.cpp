#include "core/files.hpp"
#include "learner/checkpoint.hpp"
#include "learner/learner_test.hpp"
#include "model/weights/safetensors.hpp"
#include <fstream>
#include <map>

namespace troupe {
namespace {

namespace fs = std::filesystem;

/// A run's parts: a model directory to take the tokenizer from, a learner and its batches.
struct run {
  scratch_directory scratch;
  fs::path source = scratch.make("model");
  compute where{1};
  std::shared_ptr<tiny_lm> model;
  learner l;

  /// The model is as loaded from `source`, whose embedding is of the type `stored`.
  explicit run(bool frozen = false, std::uint32_t seed = 1, dtype stored = dtype::f32)
      : model(std::make_shared<tiny_lm>(seed, frozen)), l(tiny_config(), model, nullptr, 10, where) {
    write_file(source / "tokenizer.json", "{\"a tokenizer\": 1}");
    write_file(source / "chat_template.jinja", "{{ messages }}");
    const parameter& embed = model->parameters()[0];
    std::vector<std::byte> bytes(44 * size_of(stored));
    convert_elements(dtype::f32, embed.value.data(), stored, bytes.data(), 44);
    convert_elements(stored, bytes.data(), dtype::f32, embed.value.data(), 44);
    const tensor_to_write tensor{"embed.weight", stored, {11, 4}, bytes};
    write_safetensors(source, {&tensor, 1});
  }
  void step(int times) {
    tiny_lm drawer(9);
    for (int i = 0; i < times; ++i)
      l.step(tiny_groups(drawer, 2 + std::size_t(l.steps_done()) % 3, true));
  }
};

TEST(checkpoint, a_continued_run_has_the_same_bits) {
  run whole, first;
  whole.step(5);
  first.step(2);
  first.l.set_incarnation(4);
  const auto dir = first.scratch.make("saved");
  first.l.save(dir, first.source);
  run second(false, 77);
  second.step(1);
  second.l.load(dir);
  EXPECT_EQ(second.l.version(), (weights_version{4, 2}));
  EXPECT_EQ(masters_of(*second.model), masters_of(*first.model));
  second.step(3);
  EXPECT_EQ(masters_of(*second.model), masters_of(*whole.model));
  const auto a = second.scratch.make("a"), b = whole.scratch.make("b");
  second.l.set_incarnation(0);
  second.l.save(a, second.source);
  whole.l.save(b, whole.source);
  for (const auto& entry : fs::directory_iterator(a))
    EXPECT_EQ(read_file(entry.path()), read_file(b / entry.path().filename())) << entry.path();
}

std::string bytes_of(const tensor_info& t) { return {reinterpret_cast<const char*>(t.bytes.data()), t.bytes.size()}; }

TEST(checkpoint, is_a_model_directory_with_masters_and_frozen_tensors_as_they_came) {
  for (const dtype stored : {dtype::f32, dtype::bf16, dtype::f16}) {
    run r(true, 1, stored);
    r.step(2);
    const auto dir = r.scratch.make("saved");
    r.l.save(dir, r.source);
    const safetensors_reader reader(dir), source(r.source);
    ASSERT_EQ(reader.tensors().size(), 2U);
    EXPECT_EQ(reader.find("head.weight")->type, dtype::f32);
    EXPECT_EQ(reader.find("embed.weight")->type, stored);
    EXPECT_EQ(bytes_of(*reader.find("embed.weight")), bytes_of(*source.find("embed.weight")));
    const safetensors_reader moments(dir / "optimizer.safetensors");
    EXPECT_EQ(moments.tensors().size(), 2U);
    EXPECT_TRUE(moments.find("exp_avg.head.weight") && moments.find("exp_avg_sq.head.weight"));
    EXPECT_EQ(read_file(dir / "tokenizer.json"), read_file(r.source / "tokenizer.json"));
    EXPECT_EQ(read_file(dir / "chat_template.jinja"), read_file(r.source / "chat_template.jinja"));
    EXPECT_EQ(load_model_config(dir).declared_dtype, dtype::bf16);
    EXPECT_EQ(load_model_config(dir).vocab_size, tiny_lm::vocab);

    run other(true, 1, stored);
    other.step(1);
    other.l.load(dir);
    EXPECT_EQ(masters_of(*other.model), masters_of(*r.model));
    EXPECT_EQ(values_of(*other.model), values_of(*r.model));
  }
}

TEST(checkpoint, a_frozen_tensor_that_changed_is_noticed) {
  run r(true, 1, dtype::bf16), other(true, 5, dtype::bf16);
  r.step(1);
  const auto dir = r.scratch.make("saved");
  r.l.save(dir, r.source);
  const auto before = masters_of(*other.model);
  expect_error([&] { other.l.load(dir); }, errc::bad_input, "tensor embed.weight, which is not trained, is another than the model's");
  EXPECT_EQ(masters_of(*other.model), before);
  EXPECT_EQ(other.l.steps_done(), 0);
  const auto again = r.scratch.make("again");
  expect_error([&] { r.l.save(again, other.source); }, errc::failed,
               "tensor embed.weight, which is not trained, is another than when it was loaded");
}

std::map<std::string, std::string> contents(const fs::path& dir) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::directory_iterator(dir))
    out[entry.path().filename()] = read_file(entry.path());
  return out;
}

void overwrite(const fs::path& file, const std::string& bytes) { std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes; }

TEST(checkpoint, damage_anywhere_is_noticed_and_changes_nothing) {
  run r;
  r.step(2);
  const auto dir = r.scratch.make("saved");
  r.l.save(dir, r.source);
  run victim(false, 3);
  const auto before = masters_of(*victim.model);
  const auto files = contents(dir);
  EXPECT_EQ(files.size(), 7U);
  for (const auto& [name, bytes] : files) {
    const auto refused = [&, &name = name](const std::string& what) {
      expect_error([&] { victim.l.load(dir); }, errc::bad_input, (dir / name).string());
      EXPECT_EQ(masters_of(*victim.model), before) << name << " " << what;
      EXPECT_EQ(victim.l.steps_done(), 0);
    };
    for (const auto at : {std::size_t{0}, bytes.size() / 3, bytes.size() / 2, bytes.size() - 1}) {
      auto flipped = bytes;
      flipped[at] = char(flipped[at] ^ 1);
      overwrite(dir / name, flipped);
      refused("flipped");
    }
    overwrite(dir / name, bytes.substr(0, bytes.size() - 1));
    refused("truncated");
    overwrite(dir / name, "");
    refused("empty");
    overwrite(dir / name, bytes + "x");
    refused("longer");
    fs::remove(dir / name);
    refused("missing");
    overwrite(dir / name, bytes);
  }
  victim.l.load(dir);
  EXPECT_EQ(masters_of(*victim.model), masters_of(*r.model));
}

TEST(checkpoint, one_of_another_run_is_refused_by_tensor) {
  run all, head(true, 1, dtype::bf16);
  all.step(1);
  head.step(1);
  const auto of_all = all.scratch.make("saved"), of_head = head.scratch.make("saved");
  all.l.save(of_all, all.source);
  head.l.save(of_head, head.source);
  const auto before = masters_of(*head.model);
  expect_error([&] { head.l.load(of_all); }, errc::bad_input, "tensor exp_avg.embed.weight is none of this run's");
  EXPECT_EQ(masters_of(*head.model), before);
  expect_error([&] { all.l.load(of_head); }, errc::bad_input, "tensor embed.weight is BF16 where F32 was written");
  expect_error([&] { all.l.load(all.source); }, errc::bad_input, "checksums.json: missing");
}

TEST(checkpoint, a_sealed_lie_is_still_bad_input) {
  run r;
  r.step(1);
  struct bad {
    const char *file, *text, *part;
  };
  const bad table[] = {
      {"learner.json", "{\"format\":2,\"step\":1,\"optimizer_steps\":1,\"incarnation\":0}", "format 2, this version reads 1"},
      {"learner.json", "{\"format\":1,\"step\":-1,\"optimizer_steps\":1,\"incarnation\":0}", "key step must be"},
      {"learner.json", "{\"format\":1,\"step\":1,\"optimizer_steps\":\"1\",\"incarnation\":0}", "key optimizer_steps must be"},
      {"learner.json", "{\"format\":1,\"step\":1,\"optimizer_steps\":1}", "key incarnation must be"},
      {"learner.json", "[]", "key format must be"},
      {"learner.json", "{", "key format must be"},
      {"optimizer.safetensors", "not tensors", "optimizer.safetensors"},
      {"model.safetensors", "\x08", "model.safetensors"}};
  for (const auto& c : table) {
    const auto dir = r.scratch.make("saved");
    r.l.save(dir, r.source);
    overwrite(dir / c.file, c.text);
    seal_directory(dir);
    const auto before = masters_of(*r.model);
    expect_error([&] { r.l.load(dir); }, errc::bad_input, c.part);
    EXPECT_EQ(masters_of(*r.model), before);
    fs::remove_all(dir);
  }
}

TEST(checkpoint, names) {
  EXPECT_EQ(checkpoint_path("runs/a", 40), fs::path("runs/a/checkpoints/step-000040"));
  EXPECT_EQ(checkpoint_path("a", 1234567), fs::path("a/checkpoints/step-1234567"));
  struct row {
    const char* name;
    std::optional<std::int64_t> step;
  };
  const row table[] = {{"step-000040", 40},
                       {"step-1234567", 1234567},
                       {"step-0000040", std::nullopt},
                       {"step-40", std::nullopt},
                       {"step-00004x", std::nullopt},
                       {"step-", std::nullopt},
                       {"step-000040.replaced", std::nullopt},
                       {".step-000040.partial.1", std::nullopt},
                       {"step-99999999999999999999", std::nullopt}};
  for (const auto& r : table)
    EXPECT_EQ(checkpoint_step(fs::path("x") / r.name), r.step) << r.name;
}

TEST(checkpoint, the_newest_whole_one_is_taken) {
  run r;
  const auto dir = r.scratch.make("run");
  std::vector<std::string> lines;
  const auto log = [&](std::string line) { lines.push_back(std::move(line)); };
  EXPECT_FALSE(newest_whole_checkpoint(dir, log));
  std::vector<fs::path> made;
  for (int i = 0; i < 3; ++i) {
    r.step(1);
    made.push_back(write_checkpoint(dir, r.l, r.source, [](const fs::path& d) { write_file(d / "sampler.json", "{}"); }));
  }
  fs::create_directories(dir / "checkpoints" / "step-999999x");
  write_file(dir / "checkpoints" / "step-000099", "a file");
  EXPECT_EQ(newest_whole_checkpoint(dir, log), made[2]);
  EXPECT_TRUE(lines.empty());
  overwrite(made[2] / "sampler.json", "[]");
  EXPECT_EQ(newest_whole_checkpoint(dir, log), made[1]);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_NE(lines[0].find(made[2].string()), std::string::npos) << lines[0];
  EXPECT_NE(lines[0].find("sampler.json"), std::string::npos) << lines[0];
  fs::remove(made[1] / "checksums.json");
  overwrite(made[0] / "model.safetensors", "");
  EXPECT_FALSE(newest_whole_checkpoint(dir, log));
  EXPECT_EQ(lines.size(), 4U);
}

TEST(checkpoint, a_step_done_again_replaces_its_checkpoint) {
  run r;
  const auto dir = r.scratch.make("run");
  r.step(1);
  const auto path = write_checkpoint(dir, r.l, r.source);
  overwrite(path / "config.json", "damaged");
  EXPECT_EQ(write_checkpoint(dir, r.l, r.source), path);
  EXPECT_EQ(newest_whole_checkpoint(dir, [](const std::string&) {}), path);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir / "checkpoints"), {}), 1);
  overwrite(r.scratch.path / "file", "");
  expect_error([&] { write_checkpoint(r.scratch.path / "file", r.l, r.source); }, errc::io, "cannot write checkpoint");
}

} // namespace
} // namespace troupe
