#pragma once
#include "core/error.hpp"
#include "model/causal_lm.hpp"
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>

namespace troupe {

/// A test double: logits are a hash of the whole history, read back through the segment's block table, so a wrong table, a
/// missing copy or a block that somebody else wrote changes the results or throws errc::failed.
class fake_lm final : public causal_lm {
public:
  // What the cache remembers of a position instead of keys and values.
  struct slot {
    std::int32_t id = -1, position = -1;
    std::uint64_t weights = 0; // that computed it
  };
  class fake_cache final : public kv_cache {
  public:
    explicit fake_cache(std::int32_t n) : slots(std::size_t(n) * kv_block_tokens) {}
    std::int32_t n_blocks() const override { return std::int32_t(slots.size() / kv_block_tokens); }
    void copy_block(std::int32_t from, std::int32_t to) override {
      std::copy_n(slots.begin() + from * kv_block_tokens, kv_block_tokens, slots.begin() + to * kv_block_tokens);
    }
    std::vector<slot> slots; // [n_blocks, kv_block_tokens]
  };

  explicit fake_lm(std::int64_t vocab, std::int64_t max_position = 4096, float spread = 4.0f) : spread_(spread) {
    config_.architecture = "fake";
    config_.vocab_size = vocab;
    config_.max_position_embeddings = max_position;
  }
  model_config& settings() { return config_; }
  std::int64_t rows() const { return rows_; } // that went through forward
  void set_weights(std::uint64_t weights) { weights_ = weights; }
  /// Logits follow from the last n tokens alone, so that texts repeat themselves; 0: from all.
  void set_memory(std::int32_t n) { memory_ = n; }
  void set_draws(bool draws) { draws_ = draws; }

  const model_config& config() const override { return config_; }
  dtype compute_type() const override { return dtype::f32; }
  std::span<parameter> parameters() override { return {}; }
  void publish_masters() override {}
  void publish_values(std::span<const std::size_t>) override {}
  std::unique_ptr<kv_cache> make_cache(std::int32_t n_blocks) override { return std::make_unique<fake_cache>(n_blocks); }
  std::size_t cache_block_bytes() const override { return kv_block_tokens * sizeof(slot); }

  void forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) override {
    auto& slots = dynamic_cast<fake_cache&>(cache).slots;
    rows_ += std::int64_t(batch.ids.size());
    std::vector<std::int32_t> writers(slots.size(), -1);
    const auto write = [&](std::int32_t row, std::size_t at) {
      if (std::exchange(writers.at(at), row) >= 0)
        throw error{errc::failed, "fake_lm: two rows of a pass write slot " + std::to_string(at)};
      slots[at] = {batch.ids.at(std::size_t(row)), batch.positions.at(std::size_t(row)), weights_};
    };
    std::int32_t next = 0;
    for (const auto& s : batch.segments) {
      if (s.row_begin != next || s.row_end <= s.row_begin)
        throw error{errc::failed, "fake_lm: segments do not cover the rows in order"};
      next = s.row_end;
      for (auto r = s.row_begin; r < s.row_end; ++r) {
        if (batch.positions.at(std::size_t(r)) != s.position + r - s.row_begin)
          throw error{errc::failed, "fake_lm: row " + std::to_string(r) + " has another position than its segment says"};
        write(r, place(s, s.position + r - s.row_begin));
      }
    }
    for (const auto& c : batch.copies)
      write(c.row, std::size_t(c.block) * kv_block_tokens + std::size_t(c.slot));
    if (next != std::int32_t(batch.ids.size()))
      throw error{errc::failed, "fake_lm: segments do not cover all rows"};
    for (std::size_t i = 0; i < logit_rows.size(); ++i)
      row_logits(history(batch, slots, logit_rows[i]), logits + i * std::size_t(config_.vocab_size));
  }

  bool draws() const override { return draws_; }
  void forward_draw(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, std::span<const token_draw> draws,
                    drawn_token* drawn) override {
    const auto vocab = std::size_t(config_.vocab_size);
    std::vector<float> all(logit_rows.size() * vocab);
    forward(batch, cache, logit_rows, all.data());
    for (std::size_t i = 0; i < draws.size(); ++i) {
      const float* row = all.data() + std::size_t(draws[i].row) * vocab;
      drawn[i].id = draw_from(row, draws[i]);
      drawn[i].logprob = logprob(row, drawn[i].id, draws[i].logprob_temperature);
    }
  }

  target_values score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>*) override {
    const auto cache = make_cache(batch.tokens.n_blocks);
    std::vector<float> logits(batch.target_rows.size() * std::size_t(config_.vocab_size));
    forward(batch.tokens, *cache, batch.target_rows, logits.data());
    target_values out;
    for (std::size_t i = 0; i < batch.targets.size(); ++i)
      out.logprobs.push_back(logprob(logits.data() + i * std::size_t(config_.vocab_size), batch.targets[i], temperature));
    out.entropy.resize(entropy ? batch.targets.size() : 0);
    return out;
  }
  void backward(tape&, std::span<const float>, std::span<const float>) override {}
  void zero_grads() override {}

  float logprob(const float* logits, std::int32_t id, float temperature) const override {
    double total = 0;
    const double most = *std::max_element(logits, logits + config_.vocab_size);
    for (std::int64_t i = 0; i < config_.vocab_size; ++i)
      total += std::exp((logits[i] - most) / temperature);
    return float((logits[id] - most) / temperature - std::log(total));
  }

private:
  // Not the sampler's draw to the last bit: two ways of the same generator are not to be compared by it.
  std::int32_t draw_from(const float* row, const token_draw& d) const {
    if (d.temperature == 0)
      return std::int32_t(std::max_element(row, row + config_.vocab_size) - row);
    double reached = 0;
    for (std::int32_t id = 0; id < config_.vocab_size; ++id)
      if (reached += std::exp(double(logprob(row, id, float(d.temperature)))); reached > d.u)
        return id;
    return std::int32_t(config_.vocab_size) - 1;
  }
  static std::size_t place(const segment& s, std::int32_t position) {
    return std::size_t(s.blocks.at(std::size_t(position / kv_block_tokens))) * kv_block_tokens + std::size_t(position % kv_block_tokens);
  }
  static std::uint64_t mix(std::uint64_t x) { // splitmix64's finaliser
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  std::uint64_t history(const token_batch& batch, const std::vector<slot>& slots, std::int32_t row) const {
    for (const auto& s : batch.segments) {
      if (row < s.row_begin || row >= s.row_end)
        continue;
      std::uint64_t h = 1;
      const auto last = s.position + row - s.row_begin;
      for (std::int32_t p = 0; p <= last; ++p) {
        const auto& found = slots.at(place(s, p));
        if (found.position != p)
          throw error{errc::failed,
                      "fake_lm: position " + std::to_string(p) + " reads a slot that holds " + std::to_string(found.position)};
        if (memory_ == 0 || p > last - memory_)
          h = mix(h + std::uint64_t(found.id) + 0x9e3779b97f4a7c15u * (found.weights + 1));
      }
      return h;
    }
    throw error{errc::failed, "fake_lm: row " + std::to_string(row) + " is in no segment"};
  }
  void row_logits(std::uint64_t h, float* out) const {
    for (std::int64_t i = 0; i < config_.vocab_size; ++i)
      out[i] = spread_ * (float(mix(h + std::uint64_t(i) * 0x9e3779b97f4a7c15u) >> 40) * 0x1p-23f - 1.0f);
  }

  model_config config_;
  float spread_;
  std::int64_t rows_ = 0;
  std::uint64_t weights_ = 0;
  std::int32_t memory_ = 0;
  bool draws_ = false;
};

} // namespace troupe
