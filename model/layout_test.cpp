#include "model/layout.hpp"
#include "model/weights/test_support.hpp"
#include <gtest/gtest.h>

namespace troupe {
namespace {

using test::message_of;

model_config llama(const std::string& more = "") {
  return parse_model_config(R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 61, "num_hidden_layers": 3, "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2)" +
                                more + "}",
                            "config.json");
}

model_config split(const std::string& architecture = "CustomSplitLLamaForCausalLM") {
  return parse_model_config(R"({"architectures": [")" + architecture +
                                R"("], "vocab_size": 61, "num_layers_8": 2, "num_layers_70": 3, "mlp": true,
    "config_8b": {"vocab_size": 61, "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "tie_word_embeddings": true},
    "config_70b": {"vocab_size": 61, "num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8,
                   "num_key_value_heads": 1, "head_dim": 16}})",
                            "config.json");
}

const tensor_spec& find(const std::vector<tensor_spec>& all, const std::string& name) {
  for (const auto& t : all)
    if (t.name == name)
      return t;
  throw std::runtime_error("no tensor " + name);
}

TEST(Layout, ASplitModelIsAListOfBlocksWithTwoWidths) {
  const auto blocks = layout_of(split());
  std::string map;
  for (const auto& b : blocks)
    map += std::string(name_of(b.kind)) + " " + b.prefix + " " + std::to_string(b.in) + ">" + std::to_string(b.out) + " " +
           std::to_string(b.source_layer) + "\n";
  EXPECT_EQ(map, "embedding model.embed_tokens. 0>32 -1\n"
                 "layer model.layers_8b.0. 32>32 0\n"
                 "layer model.layers_8b.1. 32>32 1\n"
                 "adapter model.adapter. 32>64 -1\n"
                 "layer model.layers_70b.0. 64>64 5\n"
                 "layer model.layers_70b.1. 64>64 6\n"
                 "layer model.layers_70b.2. 64>64 7\n"
                 "norm and head  64>61 -1\n");
  EXPECT_TRUE(blocks[3].relu);
  const auto all = tensors_of(split());
  const std::pair<const char*, std::vector<std::int64_t>> shapes[] = {{"model.embed_tokens.weight", {61, 32}},
                                                                      {"model.layers_8b.1.self_attn.k_proj.weight", {16, 32}},
                                                                      {"model.adapter.linear1.weight", {64, 32}},
                                                                      {"model.adapter.linear2.weight", {64, 64}},
                                                                      {"model.layers_70b.2.self_attn.q_proj.weight", {128, 64}},
                                                                      {"model.layers_70b.2.self_attn.k_proj.weight", {16, 64}},
                                                                      {"model.layers_70b.0.self_attn.o_proj.weight", {64, 128}},
                                                                      {"model.layers_70b.0.mlp.down_proj.weight", {64, 96}},
                                                                      {"model.norm.weight", {64}},
                                                                      {"lm_head.weight", {61, 64}}};
  for (const auto& [name, shape] : shapes)
    EXPECT_EQ(find(all, name).shape, shape) << name;
  EXPECT_EQ(all.size(), 1u + 5 * 9 + 2 + 2);
}

TEST(Layout, TheLastBlockFollowsTheArchitecture) {
  EXPECT_EQ(layout_of(llama()).back().kind, block_kind::lm_head);
  EXPECT_TRUE(layout_of(llama(R"(, "tie_word_embeddings": true)")).back().tied);
  EXPECT_EQ(layout_of(llama(R"(, "tie_word_embeddings": true)")).back().tensors.size(), 1u);
  EXPECT_EQ(layout_of(split("CustomSplitLLamaForTokenClassification")).back().kind, block_kind::value_head);
  EXPECT_EQ(find(tensors_of(split("CustomSplitLLamaForTokenClassification")), "score.weight").shape, (std::vector<std::int64_t>{1, 64}));
  EXPECT_TRUE(find(tensors_of(split("CustomSplitLLamaForTokenClassification")), "score.bias").optional);
  EXPECT_EQ(layout_of(split("CustomSplitLLamaForSequenceClassification")).back().kind, block_kind::reward_head);
  auto bare = llama();
  bare.head = head_kind::none;
  EXPECT_EQ(layout_of(bare).back().kind, block_kind::norm);
}

TEST(Layout, ShardsAreDisjointAndCoverTheTensor) {
  for (const std::int64_t tp : {1, 2, 4})
    for (const auto& t : tensors_of(split())) {
      if (t.shard == shard_rule::none || (t.replicate && t.shape[0] / t.unit < tp))
        continue;
      std::int64_t end = 0;
      for (std::int64_t rank = 0; rank < tp; ++rank) {
        const auto part = shard_of(t, rank, tp);
        EXPECT_EQ(part.begin, end) << t.name;
        EXPECT_EQ(part.begin % t.unit, 0) << t.name;
        end = part.end;
      }
      EXPECT_EQ(end, t.shape[t.shard == shard_rule::columns ? 1 : 0]) << t.name << " of " << tp;
    }
}

// The embedding and the head are cut by rows of the vocabulary, never by columns.
TEST(Layout, EmbeddingAndHeadAreCutByDimZero) {
  const auto all = tensors_of(split());
  for (const auto* name : {"model.embed_tokens.weight", "lm_head.weight"}) {
    EXPECT_EQ(shard_of(find(all, name), 0, 2).dim, 0);
    EXPECT_EQ(shard_of(find(all, name), 0, 2).end, 31);
    EXPECT_EQ(shard_of(find(all, name), 1, 2).end, 61);
    EXPECT_EQ(shard_shape(find(all, name), 3, 4)[0], 61 - 48);
  }
  EXPECT_EQ(shard_shape(find(all, "model.adapter.linear1.weight"), 1, 2), (std::vector<std::int64_t>{32, 32}));
  EXPECT_EQ(shard_shape(find(all, "model.adapter.linear2.weight"), 1, 2), (std::vector<std::int64_t>{64, 32}));
}

TEST(Layout, FewKeyValueHeadsAreHeldByManyRanks) {
  const auto all = tensors_of(split());
  const auto& k = find(all, "model.layers_8b.0.self_attn.k_proj.weight"); // 2 heads of 8
  for (const std::int64_t rank : {0, 1, 2, 3}) {
    EXPECT_EQ(shard_of(k, rank, 4).begin, rank / 2 * 8);
    EXPECT_EQ(shard_of(k, rank, 4).end, rank / 2 * 8 + 8);
  }
  EXPECT_EQ(message_of("/none", errc::bad_config, [&] { shard_of(find(all, "model.layers_8b.0.self_attn.q_proj.weight"), 0, 3); }),
            "tensor_parallel_size = 3: tensor model.layers_8b.0.self_attn.q_proj.weight has 4 heads, which that many ranks cannot share");
  EXPECT_EQ(message_of("/none", errc::bad_config, [&] { shard_of(find(all, "model.layers_8b.0.mlp.down_proj.weight"), 0, 5); }),
            "tensor_parallel_size = 5: tensor model.layers_8b.0.mlp.down_proj.weight has 48 columns, which that many ranks cannot share");
}

} // namespace
} // namespace troupe
