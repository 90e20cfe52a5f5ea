#include "cli/layer_map.hpp"
#include "cli/loading.hpp"
#include "cli/memory.hpp"
#include "cli/report.hpp"
#include "cli/validate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/compute.hpp"
#include "model/layout.hpp"
#include "model/registry.hpp"
#include <algorithm>
#include <cstdlib>
#include <gtest/gtest.h>

namespace fs = std::filesystem;

namespace troupe {
namespace {

model_config tiny(bool tied) {
  return parse_model_config(
      std::string(R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": )") +
          (tied ? "true}" : "false}"),
      "config.json");
}

config small_config(const std::string& dir) {
  return parse_config("[model]\npath='m'\n[reward]\nfunction='last_number'\n[data]\ntrain_files=['a']\nmax_prompt_length=32\n"
                      "max_response_length=32\ntrain_batch_size=4\n[rollout]\nn=2\n[run]\ndir='" +
                          dir + "'",
                      "x.toml");
}

std::string refusal(const config& cfg) {
  try {
    check_run_directory(cfg);
  } catch (const error& e) {
    EXPECT_EQ(e.code(), errc::bad_config);
    return e.what();
  }
  return "";
}

class cli_support : public ::testing::Test {
protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "troupe-cli-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { fs::remove_all(dir_); }
  fs::path dir_;
};

// What a loading_line writes of three calls.
std::string loading_text(std::chrono::seconds after, bool terminal) {
  std::FILE* out = std::tmpfile();
  {
    loading_line line(terminal ? out : nullptr, after);
    line.show(1'500'000'000, 6'400'000'000);
    line.show(6'300'000'000, 6'400'000'000);
    line.show(6'400'000'000, 6'400'000'000);
  }
  std::string text(std::size_t(std::ftell(out)), '\0');
  std::rewind(out);
  EXPECT_EQ(std::fread(text.data(), 1, text.size(), out), text.size());
  std::fclose(out);
  return text;
}

TEST(loading_line, is_shown_when_it_takes_long_and_erased_at_the_end) {
  EXPECT_EQ(loading_text(std::chrono::seconds(0), true), "\r\033[Kloading 1.5 of 6.4 GB\r\033[Kloading 6.3 of 6.4 GB\r\033[K");
  EXPECT_EQ(loading_text(std::chrono::seconds(3600), true), "");
  EXPECT_EQ(loading_text(std::chrono::seconds(0), false), "") << "no terminal";
}

TEST_F(cli_support, expected_tensors_are_the_models_parameters) {
  compute where(1);
  for (const bool tied : {false, true}) {
    const auto model = make_model(tiny(tied), model_options{}, where);
    const auto expected = tensors_of(tiny(tied));
    ASSERT_EQ(model->parameters().size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const auto& p = model->parameters()[i];
      const auto same = std::find_if(expected.begin(), expected.end(), [&](const auto& e) { return e.name == p.name; });
      ASSERT_NE(same, expected.end()) << p.name;
      EXPECT_EQ(same->shape, p.shape) << p.name;
    }
  }
}

TEST_F(cli_support, a_layer_map_says_which_layers_of_which_model) {
  const std::string half =
      R"({"vocab_size": 64, "num_hidden_layers": 6, "intermediate_size": 48, "num_attention_heads": 4, "hidden_size": )";
  const auto cfg = parse_model_config(R"({"architectures": ["CustomSplitLLamaForCausalLM"], "vocab_size": 64, "num_layers_8": 2,
    "num_layers_70": 3, "mlp": true, "path70b": "models/large", "config_8b": )" +
                                          half + R"(32}, "config_70b": )" + half + "64}}",
                                      "config.json");
  const auto blocks = layout_of(cfg);
  EXPECT_EQ(layer_map(cfg, blocks, 0, blocks.size()),
            (std::vector<std::string>{"model.embed_tokens: 64 x 32",
                                      "model.layers_8b.0 to model.layers_8b.1: width 32, layers 0 to 1 of the 6 of the first model",
                                      "model.adapter: 32 to 64, ReLU",
                                      "model.layers_70b.0 to model.layers_70b.2: width 64, layers 3 to 5 of the 6 of models/large",
                                      "norm and head: 64 to 64"}));
  EXPECT_EQ(layer_map(cfg, blocks, 5, 8),
            (std::vector<std::string>{"model.layers_70b.1 to model.layers_70b.2: width 64, layers 4 to 5 of the 6 of models/large",
                                      "norm and head: 64 to 64"}));
  EXPECT_EQ(layer_map(tiny(true), layout_of(tiny(true)), 1, 2), std::vector<std::string>{"model.layers.0: width 32"});
}

TEST_F(cli_support, memory_follows_from_shapes) {
  // 64*32 embedding, 2 layers of 32*(32+16+16+32) + 3*32*48 + 2*32, a norm of 32; the tied head is multiplied, too.
  const std::uint64_t linear = 2 * (32 * 96 + 3 * 32 * 48), parameters = 64 * 32 + linear + 2 * 64 + 32;
  const auto ranks = estimate_memory(small_config("d"), tiny(true), parameters);
  ASSERT_EQ(ranks.size(), 2u);
  EXPECT_EQ(ranks[0].parts[0].bytes, parameters * 4);
  EXPECT_EQ(ranks[0].parts[2].bytes, parameters * 8);
  EXPECT_EQ(ranks[1].parts[0].bytes, parameters * 2);
  EXPECT_EQ(ranks[1].parts[1].bytes, (linear + 64 * 32) * 2);
  // 4 prompts x 2 samples of 64 tokens, keys and values of 2 layers x 2 heads x 8.
  EXPECT_EQ(ranks[1].parts[2].bytes, 8u * 64 * 2 * 2 * 2 * 8 * 2);
  // What is frozen has neither master nor gradient nor moments.
  const auto frozen = estimate_memory(small_config("d"), tiny(true), 7)[0].parts;
  EXPECT_EQ(frozen[0].bytes + frozen[1].bytes + frozen[2].bytes, 7u * 16);
  EXPECT_EQ(frozen[3].bytes, parameters * 2);
  EXPECT_EQ(memory_shortage(small_config("d"), ranks, std::uint64_t{1} << 40), "");
  EXPECT_NE(memory_shortage(small_config("d"), ranks, 1000).find("this machine has 1000 B"), std::string::npos);
}

TEST_F(cli_support, memory_of_processes_is_that_of_their_parts) {
  config cfg = small_config("d");
  const auto one = estimate_memory(cfg, tiny(false), 1000);
  cfg.placement.processes = true;
  EXPECT_EQ(estimate_memory(cfg, tiny(false), 1000).size(), one.size());
  cfg.learner.tensor_parallel_size = 2;
  cfg.learner.pipeline_parallel_size = 2;
  cfg.rollout.tensor_parallel_size = 2;
  const auto ranks = estimate_memory(cfg, tiny(false), 1000);
  ASSERT_EQ(ranks.size(), 4u + 2u);
  const auto weights = [](const rank_memory& r, std::size_t part) { return r.parts[part].bytes; };
  // Norms alone are held twice: 5 of 32 elements, of 2 bytes.
  EXPECT_EQ(weights(ranks[0], 3) + weights(ranks[1], 3) + weights(ranks[2], 3) + weights(ranks[3], 3), weights(one[0], 3) + 5 * 32 * 2);
  EXPECT_EQ(weights(ranks[4], 0) + weights(ranks[5], 0), weights(one[1], 0) + 5 * 32 * 2);
  EXPECT_EQ(ranks[3].rank, "learner 3");
  EXPECT_EQ(ranks[5].rank, "rollout 1");
}

TEST_F(cli_support, a_runs_directory_is_fresh_or_this_runs) {
  const std::string dir = (dir_ / "run").string();
  config cfg = small_config(dir);
  EXPECT_FALSE(check_run_directory(cfg));
  fs::create_directory(dir);
  EXPECT_FALSE(check_run_directory(cfg)) << "empty";
  write_file(fs::path(dir) / "thesis.txt", "x");
  EXPECT_EQ(refusal(cfg), "run.dir = \"" + dir + "\" holds files and no config.toml: it is no run's directory; name another");
  write_file(fs::path(dir) / "config.toml", to_toml(cfg));
  EXPECT_TRUE(check_run_directory(cfg));
  cfg.run.total_steps = 99;
  cfg.placement.processes = true;
  EXPECT_TRUE(check_run_directory(cfg)) << "these may change";
  cfg.rollout.n = 4;
  cfg.run.seed = 9;
  EXPECT_EQ(refusal(cfg),
            "the run in " + dir + " was started with other values of run.seed, rollout.n; restore them or name another run.name");
  cfg = small_config(dir);
  cfg.run.resume = "never";
  EXPECT_EQ(refusal(cfg), "run.dir = \"" + dir + "\" has been used and run.resume = \"never\"; name another or remove it");
  cfg.run.resume = (dir_ / "none").string();
  EXPECT_EQ(refusal(cfg), "run.resume = \"" + cfg.run.resume + "\" is neither auto, never nor a checkpoint's directory");
  fs::create_directories(dir_ / "run" / "checkpoints" / "step-000001");
  cfg.run.resume = (dir_ / "run" / "checkpoints" / "step-000001").string();
  EXPECT_TRUE(check_run_directory(cfg));
  cfg.run.resume = dir_.string();
  EXPECT_NE(refusal(cfg).find("only a run's own checkpoint can be resumed"), std::string::npos);
}

TEST_F(cli_support, a_model_directory_that_is_missing_is_named) {
  try {
    validate_run(small_config("d"));
    ADD_FAILURE();
  } catch (const error& e) {
    EXPECT_EQ(std::string(e.what()), "model.path = \"m\" is not a directory; it must hold a Hugging Face model");
  }
}

TEST_F(cli_support, a_report_holds_its_data_and_nothing_that_ends_the_script) {
  write_report(dir_);
  EXPECT_NE(read_file(dir_ / "report.html").find("\"metrics\":[]"), std::string::npos) << "an empty run has a report";
  fs::create_directory(dir_ / "rollouts");
  write_file(dir_ / "metrics.jsonl", "{\"step\": 1, \"actor/lr\": 1e-05}\n{\"step\": 2, \"act");
  write_file(dir_ / "rollouts" / "step-000001.jsonl", "{\"step\": 1, \"text\": \"</script><script>alert(1)\", \"reward\": 1}\n");
  write_report(dir_);
  const std::string page = read_file(dir_ / "report.html");
  EXPECT_NE(page.find("\\u003c/script>\\u003cscript>alert(1)"), std::string::npos);
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  EXPECT_EQ(page.find("http://"), page.find("http://www.w3.org/2000/svg")) << "nothing is loaded";
  EXPECT_EQ(page.find("https://"), std::string::npos);
  write_file(dir_ / "metrics.jsonl", "nonsense\n{\"step\": 2}\n");
  EXPECT_THROW(write_report(dir_), error);
}

} // namespace
} // namespace troupe
