#pragma once
#include "model/cuda/device_blocks.hpp"
#include "model/cuda/device_draws.hpp"
#include "model/kernels/elementwise.hpp"
#include "model/registry.hpp"
#include <map>
#include <tuple>

namespace troupe::cuda {

/// Blocks of all layers on the GPU, [layer][block][elements].
class device_cache final : public kv_cache {
public:
  device_cache(std::vector<std::size_t> block_bytes, std::int32_t n_blocks, stream where);
  std::int32_t n_blocks() const override { return n_blocks_; }
  void* layer(std::size_t i) const { return static_cast<std::byte*>(memory_.data()) + offsets_[i]; }
  void copy_block(std::int32_t from, std::int32_t to) override;
  /// Of all caches that there were: another memory has another number.
  std::uint64_t number() const { return number_; }

private:
  std::vector<std::size_t> block_bytes_, offsets_;
  std::int32_t n_blocks_;
  stream where_;
  std::uint64_t number_;
  device_buffer memory_;
};

/// What a scoring pass keeps; its memory goes back to the model with it.
struct cuda_tape final : tape {
  std::shared_ptr<arena> memory;
  packed_batch batch;
  batch_upload upload;
  device_batch tokens;
  std::int32_t last_position = 0;
  float temperature = 1;
  std::vector<std::int32_t> rows, of; // rows that targets are predicted from, each once; which of them each target uses
  std::vector<saved_layer> layers;
  void *normalised = nullptr, *gathered = nullptr; // [n_rows, h] of the compute type
  kernels::softmax_stats* stats = nullptr;         // [n_rows]
  std::int64_t n_rows() const { return std::int64_t(rows.size()); }
};

/// A causal language model on one GPU, or a tensor-parallel rank's part of it: then every call is made by all ranks alike, and gives all of
/// them the same values. One thread; one stream.
class cuda_lm final : public causal_lm {
public:
  cuda_lm(model_config cfg, const model_options& options, compute& where);
  const model_config& config() const override { return cfg_; }
  dtype compute_type() const override { return options_.compute_type; }
  std::span<parameter> parameters() override { return weights_.parameters(); }
  void publish_masters() override;
  void publish_values(std::span<const std::size_t> indices) override {
    enter();
    weights_.upload(indices, stream_.get());
  }
  std::unique_ptr<kv_cache> make_cache(std::int32_t n_blocks) override;
  std::size_t cache_block_bytes() const override;
  std::int64_t cache_memory() const override;
  void forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) override;
  bool draws() const override { return true; }
  void forward_draw(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, std::span<const token_draw> draws,
                    troupe::drawn_token* drawn) override;
  target_values score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) override;
  void backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) override;
  void zero_grads() override {
    enter();
    weights_.zero_grads(stream_.get());
  }
  void sum_gradients() override {
    enter();
    weights_.download_grads(stream_.get());
  }
  std::vector<float> outputs(const packed_batch& batch, std::unique_ptr<tape>* save) override;
  void backward_outputs(tape& saved, std::span<const float> d_outputs) override;
  float logprob(const float* logits, std::int32_t id, float temperature) const override;

private:
  struct bucket_graph;
  void enter() const { set_device(where_.gpu()); } // CUDA's current device is a thread's
  void check(const token_batch& batch, std::int32_t cache_blocks) const;
  void require_logits() const;
  void* scratch_for(const attention_plan& plan);
  residual embeddings(const token_batch& batch, arena& memory);
  residual run_blocks(const device_batch& tokens, residual x, std::int32_t last_position, arena& memory, device_cache* cache,
                      std::vector<saved_layer>* save);
  void* normalise(const residual& x, const std::int32_t* rows, std::int64_t n_rows, arena& memory, void** gathered);
  void head(const void* normalised, std::int64_t n_rows, float* out);
  const void* own_columns(const void* d_logits, std::int64_t n_rows);
  id_range own_ids() const;
  void wait(const char* what) const { tp_.wait(stream_.get(), what); }
  std::int64_t chunk_rows() const;
  std::unique_ptr<cuda_tape> run_scored(const packed_batch& batch, bool save);
  void score_head(cuda_tape& t, bool moment, target_values& values);
  std::shared_ptr<arena> take_arena();
  float host_bias();
  // backward
  float* backward_head(cuda_tape& t, std::span<const float> d_logprob, std::span<const float> d_entropy);
  float* backward_output_head(cuda_tape& t, std::span<const float> d_outputs);
  float* head_norm_backward(cuda_tape& t, float* d_normalised);
  void backward_blocks(cuda_tape& t, float* d_hidden);
  void embedding_backward(cuda_tape& t, const float* d_hidden);
  attention_gradient_plan gradient_plan(cuda_tape& t);
  // decoding (cuda_generate.cpp)
  bool is_decoding(const token_batch& batch, std::span<const std::int32_t> logit_rows) const;
  float* queue_pass(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, std::span<const token_draw> draws);
  float* launch(const draw_arrays& draws, const device_batch& tokens, residual x, std::int32_t last_position, arena& memory,
                device_cache& cache);
  float* replay(const draw_arrays& draws, const device_batch& tokens, std::int32_t last_position, device_cache& cache);

  model_config cfg_;
  model_options options_;
  compute& where_;
  stream_owner stream_;
  device_tp tp_;
  std::vector<block_spec> layout_;
  device_weights weights_;
  std::vector<device_block> blocks_; // all but the head
  stacked norm_, matrix_, bias_;
  std::vector<std::int64_t> widths_; // columns of the head on each rank, where they share it; else empty
  std::size_t lowest_ = 0;           // first block that a gradient reaches; blocks_.size(): none
  matmul matmul_;
  device_buffer scratch_;
  bool moved_ = false; // device memory that a captured graph names was replaced
  std::int32_t cacheless_blocks_ = 0;
  std::vector<std::shared_ptr<arena>> arenas_;
  arena work_[2]; // of blocks, in turn
  // decoding
  arena eager_, captured_;
  batch_upload upload_;
  using graph_key = std::tuple<std::int64_t, bool, std::int32_t, bool, bool, bool>; // rows, draws; keys; truncation, edits, alternatives
  std::map<graph_key, std::shared_ptr<bucket_graph>> graphs_;
  std::uint64_t graphs_cache_ = 0; // number of the cache that they were recorded with
  device_draws draws_;
};

} // namespace troupe::cuda
