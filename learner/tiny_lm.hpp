#pragma once
#include "core/error.hpp"
#include "model/causal_lm.hpp"
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

/// Test double of a model: logits of the next token = head * embed[token], gradients written out by hand. For tests only.
class tiny_lm final : public causal_lm {
public:
  static constexpr std::int64_t vocab = 11, hidden = 4;

  explicit tiny_lm(std::uint32_t seed, bool freeze_embedding = false) {
    config_.architecture = "LlamaForCausalLM";
    config_.vocab_size = vocab;
    config_.n_layers = 1;
    config_.layer = {hidden, hidden, 1, 1, hidden, 1e-5, {}};
    for (int i = 0; i < 2; ++i)
      for (std::int64_t k = 0; k < vocab * hidden; ++k) {
        seed = seed * 1664525U + 1013904223U;
        master_[i].push_back(float(int(seed >> 8) - (1 << 23)) * 0x1p-22F);
      }
    const char* names[] = {"embed.weight", "head.weight"};
    for (int i = 0; i < 2; ++i) {
      grad_[i].resize(master_[i].size());
      value_[i] = master_[i];
      const bool trainable = i == 1 || !freeze_embedding;
      params_.push_back({names[i],
                         {vocab, hidden},
                         trainable,
                         trainable ? std::span<float>(master_[i]) : std::span<float>(),
                         trainable ? std::span<float>(grad_[i]) : std::span<float>(),
                         std::as_writable_bytes(std::span(value_[i]))});
    }
  }

  const model_config& config() const override { return config_; }
  dtype compute_type() const override { return dtype::f32; }
  std::span<parameter> parameters() override { return params_; }
  void publish_masters() override {
    for (std::size_t i = 0; i < 2; ++i)
      if (params_[i].trainable)
        value_[i] = master_[i];
  }
  void publish_values(std::span<const std::size_t>) override {}
  std::unique_ptr<kv_cache> make_cache(std::int32_t) override { throw error{errc::unsupported, "tiny_lm keeps no cache"}; }
  std::size_t cache_block_bytes() const override { return 0; }
  void forward(const token_batch&, kv_cache&, std::span<const std::int32_t>, float*) override {
    throw error{errc::unsupported, "tiny_lm does not generate"};
  }
  float logprob(const float*, std::int32_t, float) const override { throw error{errc::unsupported, "tiny_lm does not generate"}; }

  target_values score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) override {
    target_values out;
    auto kept = std::make_unique<kept_pass>();
    kept->temperature = temperature;
    for (std::size_t i = 0; i < batch.targets.size(); ++i) {
      const std::int32_t from = batch.tokens.ids[std::size_t(batch.target_rows[i])];
      auto p = distribution(from, temperature);
      const double own = std::log(p[std::size_t(batch.targets[i])]);
      double h = 0;
      for (double x : p)
        h -= x * std::log(x);
      out.logprobs.push_back(float(own));
      if (entropy)
        out.entropy.push_back(float(h));
      kept->from.push_back(from);
      kept->target.push_back(batch.targets[i]);
    }
    n_passes += 1;
    n_rows += std::int64_t(batch.tokens.ids.size());
    if (save)
      *save = std::move(kept);
    return out;
  }

  void backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) override {
    const auto& kept = static_cast<kept_pass&>(saved);
    for (std::size_t i = 0; i < kept.from.size(); ++i) {
      const auto p = distribution(kept.from[i], kept.temperature);
      double h = 0;
      for (double x : p)
        h -= x * std::log(x);
      for (std::int64_t v = 0; v < vocab; ++v) {
        const double x = p[std::size_t(v)];
        double dz = double(d_logprob[i]) * ((v == kept.target[i] ? 1 : 0) - x);
        if (!d_entropy.empty())
          dz -= double(d_entropy[i]) * x * (std::log(x) + h);
        dz /= kept.temperature;
        for (std::int64_t k = 0; k < hidden; ++k) {
          const auto e = std::size_t(kept.from[i] * hidden + k), w = std::size_t(v * hidden + k);
          grad_[0][e] += float(dz * value_[1][w]);
          grad_[1][w] += float(dz * value_[0][e]);
        }
      }
    }
  }

  void zero_grads() override {
    for (auto& g : grad_)
      std::fill(g.begin(), g.end(), 0.0F);
  }

  std::int64_t n_passes = 0, n_rows = 0; // of score, so far

private:
  struct kept_pass final : tape {
    std::vector<std::int32_t> from, target;
    double temperature = 1;
  };

  std::vector<double> distribution(std::int32_t from, double temperature) const {
    std::vector<double> p(vocab);
    double sum = 0;
    for (std::int64_t v = 0; v < vocab; ++v) {
      double z = 0;
      for (std::int64_t k = 0; k < hidden; ++k)
        z += double(value_[0][std::size_t(from * hidden + k)]) * double(value_[1][std::size_t(v * hidden + k)]);
      sum += p[std::size_t(v)] = std::exp(z / temperature);
    }
    for (double& x : p)
      x /= sum;
    return p;
  }

  model_config config_;
  std::vector<float> master_[2], grad_[2], value_[2];
  std::vector<parameter> params_;
};

} // namespace troupe
