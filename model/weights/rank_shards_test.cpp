#include "model/weights/convert.hpp"
#include "model/weights/split_test_support.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::same_bytes;
using test::scratch;
using test::tiny_config;
using test::write_model;

nlohmann::json split_config() {
  return {{"architectures", {"CustomSplitLLamaForCausalLM"}},
          {"num_layers_8", 2},
          {"num_layers_70", 2},
          {"vocab_size", 61},
          {"mlp", true},
          {"config_8b", tiny_config(32, 3, 4, 2)},
          {"config_70b", tiny_config(48, 2, 4, 1)}};
}

TEST(RankShards, JoiningGivesTheSameBytesBackFromEveryLayout) {
  const scratch dir;
  write_model(dir / "split", split_config(), dtype::bf16);
  write_model(dir / "tied", tiny_config(32, 3, 4, 2, R"({"tie_word_embeddings": true})"), dtype::f32);
  dir.put("split/tokenizer.json", "{}");
  for (const auto* name : {"split", "tied"}) {
    const safetensors_reader source(dir / name);
    for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {4, 3}, {2, 2}}) {
      const std::string at = std::string(name) + std::to_string(tp) + std::to_string(pp);
      convert_shard(dir / name, dir / (at + "-ranks"), tp, pp);
      convert_join(dir / (at + "-ranks"), dir / at);
      const safetensors_reader joined(dir / at);
      ASSERT_EQ(joined.tensors().size(), source.tensors().size()) << at;
      for (const auto& [tensor, info] : source.tensors())
        EXPECT_TRUE(same_bytes(joined.find(tensor), &info)) << at << " " << tensor;
      EXPECT_EQ(read_file(dir / at / "config.json"), read_file(dir / name / "config.json"));
      EXPECT_EQ(fs::exists(dir / at / "tokenizer.json"), std::string(name) == "split");
    }
  }
}

TEST(RankShards, AnotherLayoutsRanksAndASplitModelsFileAreSourcesToo) {
  const scratch dir;
  write_model(dir / "split", split_config(), dtype::f32);
  convert_shard(dir / "split", dir / "four", 4, 1);
  convert_shard(dir / "four", dir / "six", 2, 3);
  convert_shard(dir / "split", dir / "direct", 2, 3);
  for (const auto& entry : fs::recursive_directory_iterator(dir / "direct"))
    if (entry.is_regular_file()) {
      EXPECT_EQ(read_file(dir / "six" / fs::relative(entry.path(), dir / "direct")), read_file(entry.path())) << entry.path();
    }
  const auto half = tiny_config(32, 3, 4, 2);
  write_model(dir / "first", half, dtype::bf16);
  dir.put("split.json", nlohmann::json{{"architectures", {"CustomSplitLLamaForCausalLM"}},
                                       {"path8b", (dir / "first").string()},
                                       {"path70b", (dir / "first").string()},
                                       {"num_layers_8", 1},
                                       {"num_layers_70", 2},
                                       {"vocab_size", half.at("vocab_size")},
                                       {"mlp", false}}
                            .dump());
  convert_split(dir / "split.json", dir / "whole", std::nullopt, 0);
  convert_shard(dir / "split.json", dir / "ranks", 2, 2);
  convert_join(dir / "ranks", dir / "joined");
  EXPECT_EQ(read_file(dir / "joined/model.safetensors"), read_file(dir / "whole/model.safetensors"));
  for (const auto& source : {dir / "four", dir / "split.json"})
    EXPECT_NE(message_of(dir.path(), errc::bad_config, [&] { convert_shard(source, dir / "out", 3, 1); }).find("tensor_parallel_size = 3"),
              std::string::npos);
  for (const auto& entry : fs::directory_iterator(dir.path()))
    EXPECT_EQ(entry.path().string().find(".whole"), std::string::npos) << entry.path();
}

// Rows of the vocabulary, not columns; the last rank has what is left of them.
TEST(RankShards, EmbeddingAndHeadAreCutByDimZero) {
  const scratch dir;
  write_model(dir / "split", split_config(), dtype::f32);
  convert_shard(dir / "split", dir / "ranks", 4, 1);
  const safetensors_reader whole(dir / "split");
  for (const auto* name : {"model.embed_tokens.weight", "lm_head.weight"}) {
    const tensor_info& all = *whole.find(name);
    std::size_t at = 0;
    for (int t = 0; t < 4; ++t) {
      const safetensors_reader rank(dir / ("ranks/rank-pp0-tp" + std::to_string(t)));
      const tensor_info& part = *rank.find(name);
      EXPECT_EQ(part.shape, (std::vector<std::int64_t>{t < 3 ? 16 : 13, all.shape[1]})) << name;
      EXPECT_TRUE(std::equal(part.bytes.begin(), part.bytes.end(), all.bytes.begin() + std::ptrdiff_t(at))) << name;
      at += part.n_bytes;
    }
    EXPECT_EQ(at, all.n_bytes);
  }
  const safetensors_reader rank(dir / "ranks/rank-pp0-tp3");
  EXPECT_EQ(rank.find("model.adapter.linear1.weight")->shape, (std::vector<std::int64_t>{12, 32}));
  EXPECT_EQ(rank.find("model.adapter.linear2.weight")->shape, (std::vector<std::int64_t>{48, 12}));
  EXPECT_EQ(rank.find("model.layers_8b.0.self_attn.k_proj.weight")->shape, (std::vector<std::int64_t>{8, 32})) << "2 heads, 4 ranks";
  EXPECT_EQ(rank.find("model.norm.weight")->shape, (std::vector<std::int64_t>{48}));
}

TEST(RankShards, WhatCannotBeDoneIsNamedAndLeavesNothing) {
  const scratch dir;
  write_model(dir / "split", split_config(), dtype::f32);
  EXPECT_EQ(message_of(dir.path(), errc::bad_config, [&] { convert_shard(dir / "split", dir / "out", 3, 1); }),
            "tensor_parallel_size = 3: tensor model.layers_8b.0.self_attn.q_proj.weight has 4 heads, which that many ranks cannot share");
  EXPECT_EQ(message_of(dir.path(), errc::bad_config, [&] { convert_shard(dir / "split", dir / "out", 1, 8); }),
            "pipeline_parallel_size = 8: the model has 7 blocks, a stage needs one");
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { convert_join(dir / "split", dir / "out"); }),
            "DIR/split has no layout.json: it is no directory that convert shard wrote");
  convert_shard(dir / "split", dir / "ranks", 2, 1);
  const auto file = dir / "ranks/rank-pp0-tp1/model.safetensors";
  auto bytes = read_file(file);
  const safetensors_reader rank(dir / "ranks/rank-pp0-tp1");
  const tensor_info& norm = *rank.find("model.norm.weight");
  bytes[bytes.find(std::string_view(reinterpret_cast<const char*>(norm.bytes.data()), norm.n_bytes))] ^= 1;
  dir.put("ranks/rank-pp0-tp1/new", bytes);
  fs::rename(dir / "ranks/rank-pp0-tp1/new", file);
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { convert_join(dir / "ranks", dir / "out"); }),
            "DIR/ranks/rank-pp0-tp1: tensor model.norm.weight differs from another rank's copy of the same part");
  dir.put("ranks/layout.json", R"({"tensor_parallel_size": 4, "pipeline_parallel_size": 1})");
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { convert_join(dir / "ranks", dir / "out"); }),
            "DIR/ranks/rank-pp0-tp0: tensor model.embed_tokens.weight is [31, 32], config.json makes it [16, 32]");
  dir.put("ranks/layout.json", R"({"tensor_parallel_size": 0, "pipeline_parallel_size": 1})");
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { convert_join(dir / "ranks", dir / "out"); }),
            "DIR/ranks/layout.json: tensor_parallel_size: must be an integer from 1 to 1024");
  fs::remove_all(dir / "ranks/rank-pp0-tp1");
  dir.put("ranks/layout.json", R"({"tensor_parallel_size": 2, "pipeline_parallel_size": 1})");
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { convert_join(dir / "ranks", dir / "out"); }),
            "cannot read DIR/ranks/rank-pp0-tp1: No such file or directory");
  EXPECT_FALSE(fs::exists(dir / "out"));
}

} // namespace
} // namespace troupe
