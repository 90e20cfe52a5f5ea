#pragma once
#include "core/error.hpp"
#include "learner/learner.hpp"
#include "learner/tiny_lm.hpp"
#include "model/compute.hpp"
#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace troupe {

inline config tiny_config() {
  config cfg;
  cfg.data.max_response_length = 8;
  cfg.learner.optim.lr = 1e-2;
  return cfg;
}

/// Groups of 3 samples with uneven lengths (one empty), rewards with spread, old log-probabilities recorded from `model`
/// and shifted a little where `off_policy`.
inline std::vector<scored_group> tiny_groups(causal_lm& model, std::size_t n_groups, bool off_policy, float temperature = 1) {
  std::vector<scored_group> groups(n_groups);
  for (std::size_t g = 0; g < n_groups; ++g) {
    auto& group = groups[g].group;
    group.key = {1, std::uint32_t(g), false};
    for (std::size_t t = 0; t < 2 + g % 4; ++t)
      group.prompt_ids.push_back(std::int32_t((g * 5 + t * 3) % 11));
    for (std::size_t s = 0; s < 3; ++s) {
      sample one;
      for (std::size_t t = 0; t < (g + 3 * s) % 5; ++t)
        one.output_ids.push_back(std::int32_t((g * 7 + s * 4 + t * t) % 11));
      batch_builder builder;
      builder.add_group(group.prompt_ids, {one.output_ids});
      one.logprobs = model.score(builder.take(), temperature, false, nullptr).logprobs;
      if (off_policy)
        for (std::size_t t = 0; t < one.logprobs.size(); ++t)
          one.logprobs[t] += 0.1F * float(int(t + s) % 5 - 2);
      one.versions.assign(one.output_ids.size(), {});
      group.samples.push_back(one);
    }
    groups[g].advantages = {1.0, -0.5, -0.75 + 0.5 * double(g % 2)};
  }
  return groups;
}

inline std::vector<std::vector<float>> masters_of(causal_lm& model) {
  std::vector<std::vector<float>> out;
  for (const auto& p : model.parameters())
    out.emplace_back(p.master.begin(), p.master.end());
  return out;
}

inline std::vector<std::vector<std::byte>> values_of(causal_lm& model) {
  std::vector<std::vector<std::byte>> out;
  for (const auto& p : model.parameters())
    out.emplace_back(p.value.begin(), p.value.end());
  return out;
}

inline std::vector<float> grads_of(causal_lm& model) {
  std::vector<float> out;
  for (const auto& p : model.parameters())
    out.insert(out.end(), p.grad.begin(), p.grad.end());
  return out;
}

/// A directory that goes when the test does.
struct scratch_directory {
  std::filesystem::path path;
  scratch_directory() {
    std::string name = std::filesystem::temp_directory_path() / "troupe-learner-XXXXXX";
    path = mkdtemp(name.data());
  }
  ~scratch_directory() { std::filesystem::remove_all(path); }
  std::filesystem::path make(const std::string& name) const {
    std::filesystem::create_directories(path / name);
    return path / name;
  }
};

/// Runs f and expects troupe::error with that code and text.
template <class F>
void expect_error(F&& f, errc code, const std::string& part) {
  try {
    f();
    ADD_FAILURE() << "not refused; expected: " << part;
  } catch (const error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what() << "\nlacks: " << part;
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
  }
}

} // namespace troupe
