#include "core/error.hpp"
#include "model/parallel/model_support.hpp"
#include "model/parallel/rank_files.hpp"
#include "model/parallel/test_support.hpp"
#include "model/weights/safetensors.hpp"
#include <cmath>
#include <cstring>
#include <filesystem>
#include <mutex>

namespace troupe {
namespace {

namespace fs = std::filesystem;

class scratch_directory {
public:
  scratch_directory() {
    std::string name = (fs::temp_directory_path() / "rank_files_XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~scratch_directory() { fs::remove_all(path); }
  fs::path path;
};

// Whole tensors whose every element is its own number, so that a slice tells where it was cut.
void write_numbered(const model_config& cfg, const fs::path& dir, dtype type) {
  std::vector<tensor_to_make> tensors;
  for (const auto& spec : tensors_of(cfg))
    tensors.push_back({spec.name, type, spec.shape, [spec, type](std::span<std::byte> to) {
                         std::vector<float> values(std::size_t(spec.numel()));
                         for (std::size_t i = 0; i < values.size(); ++i)
                           values[i] = float(i);
                         convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(values.data()), type, to.data(), values.size());
                       }});
  write_safetensors(dir, tensors);
}

// Every tensor with element i equal to at(i).
void write_numbers(const model_config& cfg, const fs::path& dir, dtype type, const std::function<double(std::int64_t)>& at) {
  std::vector<tensor_to_make> tensors;
  for (const auto& spec : tensors_of(cfg))
    tensors.push_back({spec.name, type, spec.shape, [&, type](std::span<std::byte> to) {
                         for (std::size_t i = 0; i * size_of(type) < to.size(); ++i) {
                           const double value = at(std::int64_t(i));
                           convert_elements(dtype::f64, reinterpret_cast<const std::byte*>(&value), type, to.data() + i * size_of(type), 1);
                         }
                       }});
  write_safetensors(dir, tensors);
}

// An embedding of 800,000 numbers: several pieces for the threads that load it.
model_config wide_table() {
  model_config cfg = tiny_llama(1, true);
  cfg.vocab_size = 20000;
  return cfg;
}

std::shared_ptr<causal_lm> make_rank(const model_config& cfg, const rank_context& ranks, dtype type, bool training, compute& where) {
  auto setup = std::make_shared<rank_setup>();
  setup->ranks = ranks;
  return make_model(cfg, {type, training, {"*"}, setup}, where);
}

TEST(RankLoader, ReadsItsSlicesByTheDimensionsThatMegatronHas) {
  const scratch_directory dir;
  const model_config cfg = tiny_llama(2, false);
  write_numbered(cfg, dir.path, dtype::f32);
  // Name -> dimension that four ranks share; the embedding and the head by rows, of which the last rank has fewer.
  const std::map<std::string, int> dims = {
      {"model.embed_tokens.weight", 0},
      {"lm_head.weight", 0},
      {"model.layers.1.self_attn.q_proj.weight", 0},
      {"model.layers.1.self_attn.k_proj.weight", 0},
      {"model.layers.1.self_attn.o_proj.weight", 1},
      {"model.layers.1.mlp.gate_proj.weight", 0},
      {"model.layers.1.mlp.up_proj.weight", 0},
      {"model.layers.1.mlp.down_proj.weight", 1},
  };
  thread_world world;
  const auto contexts = make_contexts(world, {1, 1, 4});
  compute where(1);
  for (int rank = 0; rank < 4; ++rank) {
    const auto model = make_rank(cfg, contexts[std::size_t(rank)], dtype::f32, true, where);
    const auto bytes = load_weights(*model, dir.path);
    std::size_t held = 0, seen = 0;
    for (const parameter& p : model->parameters()) {
      held += p.numel() * 4;
      const auto found = dims.find(p.name);
      const std::int64_t width = p.global_shape.size() > 1 ? p.global_shape[1] : 1, own = p.shape.size() > 1 ? p.shape[1] : 1;
      if (found != dims.end()) {
        ++seen;
        EXPECT_EQ(p.dim, found->second) << p.name;
        EXPECT_LT(p.shape[std::size_t(p.dim)], p.global_shape[std::size_t(p.dim)]) << p.name;
        EXPECT_EQ(p.shape[std::size_t(1 - p.dim)], p.global_shape[std::size_t(1 - p.dim)]) << p.name;
      }
      for (std::int64_t i = 0; i < std::int64_t(p.numel()); ++i) {
        const std::int64_t row = i / own + (p.dim == 0 ? p.begin : 0), column = i % own + (p.dim == 1 ? p.begin : 0);
        ASSERT_EQ(p.master[std::size_t(i)], float(row * width + column)) << p.name << " " << i << " of rank " << rank;
      }
    }
    EXPECT_EQ(seen, dims.size());
    EXPECT_EQ(bytes, held) << "a rank reads what it holds and nothing else";
    const parameter& embedding = model->parameters()[0];
    EXPECT_EQ(embedding.begin, 16 * rank);
    EXPECT_EQ(embedding.shape, (std::vector<std::int64_t>{rank == 3 ? 13 : 16, 40}));
  }
}

TEST(RankLoader, AStageReadsItsBlocksAlone) {
  const scratch_directory dir;
  const model_config cfg = tiny_llama(2, true);
  write_numbered(cfg, dir.path, dtype::bf16);
  thread_world world;
  const auto contexts = make_contexts(world, {3, 1, 1});
  compute where(1);
  std::uint64_t bytes = 0, whole = 0;
  std::set<std::string> names;
  for (const auto& c : contexts) {
    const auto model = make_rank(cfg, c, dtype::bf16, false, where);
    bytes += load_weights(*model, dir.path);
    for (const parameter& p : model->parameters()) {
      EXPECT_EQ(p.copy, !names.insert(p.name).second) << p.name;
      EXPECT_EQ(p.copy, c.last_stage() && p.name == "model.embed_tokens.weight") << p.name;
    }
  }
  for (const auto& spec : tensors_of(cfg)) {
    whole += spec.numel() * 2;
    EXPECT_TRUE(names.contains(spec.name));
  }
  EXPECT_EQ(bytes, whole + 61 * 40 * 2) << "the tied table is read by the first and the last stage";
}

// Pieces that several threads read give what one thread reads, whatever the types: subnormals, and float64 by way of float32.
TEST(RankLoader, ThreadsReadWhatOneReads) {
  const model_config cfg = wide_table();
  for (const auto type : {dtype::f32, dtype::bf16, dtype::f16, dtype::f64}) {
    const scratch_directory dir;
    write_numbers(cfg, dir.path, type, [](std::int64_t i) { return i % 3 == 0 ? 1e-40 * double(i) : std::sin(double(i)) * 1.00000001; });
    const safetensors_reader files(dir.path);
    for (const auto compute_type : {dtype::f32, dtype::bf16})
      for (const bool training : {false, true}) {
        compute where(3), alone(1);
        const auto model = make_model(cfg, {compute_type, training, {"*"}, nullptr}, where),
                   other = make_model(cfg, {compute_type, training, {"*"}, nullptr}, alone);
        std::uint64_t told = 0;
        const auto bytes = load_weights(*model, dir.path, {&where, [&](std::uint64_t read, std::uint64_t all) {
                                                             EXPECT_TRUE(told <= read && read <= all);
                                                             told = read;
                                                           }});
        EXPECT_EQ(told, bytes);
        EXPECT_EQ(load_weights(*other, dir.path), bytes);
        for (std::size_t i = 0; i < model->parameters().size(); ++i) {
          const parameter &a = model->parameters()[i], &b = other->parameters()[i];
          const std::size_t n = a.numel();
          std::vector<float> want(n);
          std::vector<std::byte> value(a.value.size());
          const tensor_info& tensor = *files.find(a.name);
          convert_elements(tensor.type, tensor.bytes.data(), dtype::f32, reinterpret_cast<std::byte*>(want.data()), n);
          convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(want.data()), compute_type, value.data(), n);
          ASSERT_TRUE(std::equal(value.begin(), value.end(), a.value.begin(), a.value.end())) << a.name;
          ASSERT_TRUE(std::equal(value.begin(), value.end(), b.value.begin(), b.value.end())) << a.name;
          ASSERT_TRUE(!training || std::memcmp(a.master.data(), want.data(), n * 4) == 0) << a.name;
        }
      }
  }
}

TEST(RankLoader, TheFirstNumberThatIsNotFiniteIsNamedWhoeverFindsIt) {
  const model_config cfg = wide_table();
  for (const auto type : {dtype::f32, dtype::bf16, dtype::f16, dtype::f64})
    for (const std::int64_t first : {0, 4095, 262143, 700001}) {
      const scratch_directory dir;
      write_numbers(cfg, dir.path, type, [first](std::int64_t i) {
        return i == first ? INFINITY : i > first && i % 1000 == 1 ? NAN : 1.0;
      });
      compute where(3);
      try {
        load_weights(*make_model(cfg, {dtype::bf16, false, {}, nullptr}, where), dir.path, {&where});
        FAIL();
      } catch (const error& e) {
        EXPECT_NE(std::string(e.what()).find("model.embed_tokens.weight holds infinity at element " + std::to_string(first) + ";"),
                  std::string::npos)
            << e.what();
      }
    }
}

TEST(RankLoader, NamesWhatIsWrongInItsSlice) {
  const scratch_directory dir;
  const model_config cfg = tiny_llama(2, false);
  std::vector<tensor_to_make> tensors;
  for (const auto& spec : tensors_of(cfg))
    tensors.push_back({spec.name, dtype::f32, spec.shape, [spec](std::span<std::byte> to) {
                         std::fill(to.begin(), to.end(), std::byte(0));
                         const float nan = NAN;
                         if (spec.name == "model.layers.0.self_attn.o_proj.weight") // row 5, column 47: the last rank's
                           std::memcpy(to.data() + (5 * 48 + 47) * 4, &nan, 4);
                       }});
  write_safetensors(dir.path, tensors);
  thread_world world;
  const auto contexts = make_contexts(world, {1, 1, 2});
  compute where(1);
  EXPECT_NO_THROW(load_weights(*make_rank(cfg, contexts[0], dtype::bf16, false, where), dir.path));
  try {
    load_weights(*make_rank(cfg, contexts[1], dtype::bf16, false, where), dir.path);
    FAIL();
  } catch (const error& e) {
    EXPECT_NE(std::string(e.what()).find("o_proj.weight holds NaN at element 287"), std::string::npos) << e.what();
  }
}

TEST(RankSaver, AnyLayoutWritesTheTensorsItWasLoadedFrom) {
  const scratch_directory source;
  for (const bool tied : {true, false}) {
    const model_config cfg = tiny_llama(2, tied);
    fs::remove(source.path / "model.safetensors");
    write_numbered(cfg, source.path, dtype::f32);
    for (const mesh shape : {mesh{1, 1, 1}, mesh{1, 1, 4}, mesh{3, 1, 2}}) {
      const scratch_directory target;
      thread_world world(std::chrono::seconds(20));
      const auto contexts = make_contexts(world, shape);
      expect_no_errors(run_ranks(shape.size(), [&](int r) {
        compute where(1);
        const auto model = make_rank(cfg, contexts[std::size_t(r)], dtype::bf16, true, where);
        load_weights(*model, source.path);
        save_rank_weights(*model, contexts[std::size_t(r)], target.path, dtype::f32);
      }));
      const safetensors_reader before{source.path}, after{target.path};
      ASSERT_EQ(after.tensors().size(), before.tensors().size());
      for (const auto& [name, tensor] : before.tensors()) {
        const tensor_info* saved = after.find(name);
        ASSERT_NE(saved, nullptr) << name;
        EXPECT_EQ(saved->shape, tensor.shape);
        ASSERT_EQ(saved->n_bytes, tensor.n_bytes);
        EXPECT_EQ(0, std::memcmp(saved->bytes.data(), tensor.bytes.data(), tensor.n_bytes)) << name;
      }
    }
  }
}

} // namespace
} // namespace troupe
