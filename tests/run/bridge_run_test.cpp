// Runs of the real program that train the bridge of a split model alone.
#include "core/files.hpp"
#include "model/weights/safetensors.hpp"
#include "tests/run/tiny_run.hpp"
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
namespace fs = std::filesystem;
using words = std::vector<std::string>;

constexpr auto whole_run = 240s;     // generous: a loaded machine
constexpr std::uint64_t hidden = 64; // of the tiny model

struct bridge_run : ::testing::Test {
  /// The tiny model, one of softer distributions, and a split model: the front of the one, the back of the other.
  static const tiny_world& world() {
    static tiny_world w;
    static const bool made = [] {
      soften(w.dir() / "model", w.dir() / "soft");
      const json split = {{"architectures", {"CustomSplitLLamaForCausalLM"}},
                          {"path8b", (w.dir() / "model").string()},
                          {"path70b", (w.dir() / "soft").string()},
                          {"num_layers_8", 1},
                          {"num_layers_70", 2},
                          {"vocab_size", 272},
                          {"mlp", false},
                          {"adapter_init", "identity"}};
      write_file(w.dir() / "split.json", split.dump());
      program convert({"convert", "split", (w.dir() / "split.json").string(), (w.dir() / "split").string()}, w.dir() / "convert");
      EXPECT_EQ(convert.wait(whole_run), 0) << convert.err();
      return true;
    }();
    EXPECT_TRUE(made);
    return w;
  }
  static void soften(const fs::path& from, const fs::path& to) {
    fs::create_directory(to);
    for (const char* name : {"config.json", "tokenizer.json"})
      fs::copy_file(from / name, to / name);
    const safetensors_reader files(from);
    std::vector<tensor_to_make> tensors;
    for (const auto& [name, tensor] : files.tensors())
      tensors.push_back({name, tensor.type, tensor.shape, [&info = tensor, half = name == "lm_head.weight"](std::span<std::byte> out) {
                           std::copy(info.bytes.begin(), info.bytes.end(), out.begin());
                           for (auto* x = reinterpret_cast<float*>(out.data());
                                half && x != reinterpret_cast<float*>(out.data() + out.size()); ++x)
                             *x *= 0.5f;
                         }});
    write_safetensors(to, tensors);
  }
  static program start(const std::string& command, const std::string& name, const words& settings) {
    words all = {command,     world().config().string(),
                 "--threads", "1",
                 "--set",     "run.dir=" + world().run_dir(name).string(),
                 "--set",     "model.path=" + (world().dir() / "split").string()};
    for (const auto& s : settings)
      all.insert(all.end(), {"--set", s});
    return program(all, world().run_dir(name + "-output"));
  }
  static std::vector<json> metrics(const std::string& name) {
    std::vector<json> out;
    std::ifstream in(world().run_dir(name) / "metrics.jsonl");
    for (std::string line; std::getline(in, line) && !in.eof();)
      out.push_back(json::parse(line));
    return out;
  }
};

TEST_F(bridge_run, SyncSendsTheTrainableTensorsAlone) {
  std::uint64_t all = 0; // elements of the whole model
  const safetensors_reader split(world().dir() / "split");
  for (const auto& [name, tensor] : split.tensors())
    all += tensor.n_bytes / 4;
  struct row {
    std::string trainable, dtype;
    int rollouts;
    std::uint64_t bytes;
  };
  const row table[] = {{"model.adapter.*", "bfloat16", 1, 2 * hidden * hidden * 2},
                       {"model.adapter.*", "float32", 2, 2 * (2 * hidden * hidden * 4)},
                       {"*", "bfloat16", 1, all * 2}};
  for (const auto& r : table) {
    const std::string name = "sync" + std::to_string(&r - table);
    auto p = start("train", name,
                   {"run.total_steps=3", "run.test_freq=0", "run.val_before_train=false", "placement.processes=true",
                    "rollout.actors=" + std::to_string(r.rollouts), "model.dtype=" + r.dtype, "model.trainable=[\"" + r.trainable + "\"]"});
    ASSERT_EQ(p.wait(whole_run), 0) << p.err();
    const auto lines = metrics(name);
    ASSERT_EQ(lines.size(), 3U);
    for (const auto& line : lines) {
      EXPECT_EQ(line.at("sync/bytes").get<double>(), double(r.bytes)) << r.trainable << " " << r.dtype << " " << line.at("step");
      EXPECT_EQ(line.at("exact/logprob_diff_max").get<double>(), 0);
    }
    const safetensors_reader saved(world().run_dir(name) / "checkpoints/step-000003");
    for (const auto& [tensor, info] : split.tensors()) {
      ASSERT_NE(saved.find(tensor), nullptr) << tensor;
      const auto& after = *saved.find(tensor);
      const bool same = info.type == after.type && std::equal(info.bytes.begin(), info.bytes.end(), after.bytes.begin(), after.bytes.end());
      EXPECT_EQ(same, r.trainable != "*" && tensor.rfind("model.adapter.", 0) != 0) << tensor;
    }
    const safetensors_reader state(world().run_dir(name) / "checkpoints/step-000003/optimizer.safetensors");
    EXPECT_EQ(state.tensors().size(), 2 * (r.trainable == "*" ? split.tensors().size() : 2));
  }
}

TEST_F(bridge_run, TheTeacherIsTheSecondModelUnlessOneIsNamed) {
  write_file(world().dir() / "sft.jsonl",
             "{\"prompt\": \"say 1\", \"response\": \"I say 1\"}\n{\"prompt\": \"say 2\", \"response\": \"two\"}\n");
  const std::string rows = "[\"" + (world().dir() / "sft.jsonl").string() + "\"]";
  const auto loss = [&](const std::string& name, const words& teacher) {
    words settings = {"run.task=distill",        "data.train_files=" + rows,      "data.val_files=" + rows,
                      "data.train_batch_size=2", "learner.ppo_mini_batch_size=2", "distill.top_k=0",
                      "model.dtype=float32"};
    settings.insert(settings.end(), teacher.begin(), teacher.end());
    auto p = start("eval", name, settings);
    EXPECT_EQ(p.wait(whole_run), 0) << p.err();
    return json::parse(p.out()).at("val/loss").get<double>();
  };
  // All layers are there and all but the head are the same in both, so the split model is the second one: no divergence from that.
  EXPECT_EQ(loss("default", {}), 0);
  EXPECT_EQ(loss("second", {"distill.teacher=" + (world().dir() / "soft").string()}), 0);
  EXPECT_GT(loss("first", {"distill.teacher=" + (world().dir() / "model").string()}), 1e-3);
}

} // namespace
} // namespace troupe
