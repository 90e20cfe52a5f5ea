#pragma once
#include "model/causal_lm.hpp"
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace troupe {

/// Parameters and nothing else: what weight sync needs of a model.
class fake_model final : public causal_lm {
public:
  struct spec {
    std::string name;
    std::vector<std::int64_t> shape;
    bool trainable;
  };
  fake_model(const std::vector<spec>& specs, dtype type, unsigned fill) : type_(type) {
    std::mt19937_64 random(fill);
    for (const spec& s : specs) {
      parameter p{s.name, s.shape, s.trainable, {}, {}, {}};
      storage_.emplace_back(p.numel() * size_of(type));
      for (std::byte& b : storage_.back())
        b = fill == 0 ? std::byte{0} : std::byte(random());
      parameters_.push_back(std::move(p));
    }
    for (std::size_t i = 0; i < storage_.size(); ++i)
      parameters_[i].value = storage_[i];
  }
  std::span<parameter> parameters() override { return parameters_; }
  dtype compute_type() const override { return type_; }
  void publish_values(std::span<const std::size_t> indices) override { published.assign(indices.begin(), indices.end()); }
  std::vector<std::vector<std::byte>>& storage() { return storage_; }
  std::vector<std::size_t> published;

  const model_config& config() const override { throw std::logic_error("not of a fake"); }
  void publish_masters() override { throw std::logic_error("not of a fake"); }
  std::unique_ptr<kv_cache> make_cache(std::int32_t) override { throw std::logic_error("not of a fake"); }
  std::size_t cache_block_bytes() const override { throw std::logic_error("not of a fake"); }
  void forward(const token_batch&, kv_cache&, std::span<const std::int32_t>, float*) override { throw std::logic_error("not of a fake"); }
  target_values score(const packed_batch&, float, bool, std::unique_ptr<tape>*) override { throw std::logic_error("not of a fake"); }
  void backward(tape&, std::span<const float>, std::span<const float>) override { throw std::logic_error("not of a fake"); }
  void zero_grads() override { throw std::logic_error("not of a fake"); }
  float logprob(const float*, std::int32_t, float) const override { throw std::logic_error("not of a fake"); }

private:
  dtype type_;
  std::vector<std::vector<std::byte>> storage_;
  std::vector<parameter> parameters_;
};

// Sizes around a chunk of 1 MiB, a tail that is no whole word, and an empty tensor.
inline const std::vector<fake_model::spec> specs = {
    {"embed", {1024, 1024}, true}, {"odd", {7, 3}, true}, {"frozen", {33}, false}, {"empty", {0, 4}, true}, {"large", {3, 600000}, true}};

inline std::shared_ptr<fake_model> model(unsigned fill, const std::vector<fake_model::spec>& s = specs, dtype type = dtype::bf16) {
  return std::make_shared<fake_model>(s, type, fill);
}

} // namespace troupe
