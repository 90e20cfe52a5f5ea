#include "core/error.hpp"
#include "learner/optimizer.hpp"
#include "learner/reference_test.hpp"
#include "model/kernels/thread_pool.hpp"
#include <cmath>
#include <gtest/gtest.h>

namespace troupe {
namespace {

// Parameters with storage of their own.
struct weights {
  std::vector<std::vector<float>> master, grad;
  std::vector<parameter> params;
  std::vector<parameter*> pointers;

  explicit weights(const std::vector<std::vector<float>>& start) : master(start), params(start.size()) {
    for (const auto& m : master)
      grad.emplace_back(m.size());
    for (std::size_t i = 0; i < master.size(); ++i) {
      params[i].name = "w" + std::to_string(i);
      params[i].shape = {std::int64_t(master[i].size())};
      params[i].trainable = true;
      params[i].master = master[i];
      params[i].grad = grad[i];
      pointers.push_back(&params[i]);
    }
  }
  std::vector<const parameter*> views() const { return {pointers.begin(), pointers.end()}; }
  std::vector<std::span<const float>> grads() const { return {grad.begin(), grad.end()}; }
};

TEST(adamw, matches_torch) {
  thread_pool pool(2);
  for (const auto& c : learner_reference().at("adamw")) {
    optim_section optim;
    optim.weight_decay = c.at("decay");
    optim.betas = {c.at("betas").at(0), c.at("betas").at(1)};
    weights w(c.at("start").get<std::vector<std::vector<float>>>());
    adamw optimizer(optim, w.views());
    for (const auto& s : c.at("steps")) {
      const auto grads = s.at("grads").get<std::vector<std::vector<float>>>();
      for (std::size_t i = 0; i < grads.size(); ++i)
        std::copy(grads[i].begin(), grads[i].end(), w.grad[i].begin());
      const double norm = global_norm(pool, w.grads());
      EXPECT_NEAR(norm, s.at("norm").get<double>(), 1e-12);
      optimizer.step(pool, w.pointers, c.at("lr"), clip_factor(norm, c.at("clip")));
      const auto wanted = s.at("params").get<std::vector<std::vector<float>>>();
      for (std::size_t i = 0; i < wanted.size(); ++i)
        for (std::size_t k = 0; k < wanted[i].size(); ++k)
          EXPECT_NEAR(w.master[i][k], wanted[i][k], 1e-7) << "tensor " << i << " value " << k;
    }
  }
}

// Sizes around the chunks of a sum and the widths of a vector.
std::vector<std::vector<float>> uneven_tensors() {
  std::vector<std::vector<float>> out;
  std::uint32_t x = 1;
  for (std::size_t n : {1U, 7U, 8U, 65535U, 65536U, 65537U, 200003U}) {
    std::vector<float> v(n);
    for (auto& e : v) {
      x = x * 1664525U + 1013904223U;
      e = float(int(x >> 8) - (1 << 23)) * 0x1p-23F;
    }
    out.push_back(v);
  }
  return out;
}

TEST(adamw, bits_do_not_depend_on_threads) {
  std::vector<std::vector<std::vector<float>>> results;
  std::vector<double> norms;
  for (int threads : {1, 2, 3, 5}) {
    thread_pool pool(threads);
    weights w(uneven_tensors());
    optim_section optim;
    optim.weight_decay = 0.1;
    adamw optimizer(optim, w.views());
    for (int step = 0; step < 3; ++step) {
      for (std::size_t i = 0; i < w.grad.size(); ++i)
        for (std::size_t k = 0; k < w.grad[i].size(); ++k)
          w.grad[i][k] = w.master[i][k] * 0.3F + float(k % 11) * 0.01F;
      norms.push_back(global_norm(pool, w.grads()));
      optimizer.step(pool, w.pointers, 1e-3, clip_factor(norms.back(), 1.0));
    }
    results.push_back(w.master);
  }
  for (std::size_t i = 1; i < results.size(); ++i)
    EXPECT_EQ(results[i], results[0]);
  for (std::size_t i = 3; i < norms.size(); ++i)
    EXPECT_EQ(norms[i], norms[i % 3]);
}

TEST(global_norm, matches_a_plain_sum_and_shows_bad_values) {
  thread_pool pool(2);
  weights w(uneven_tensors());
  w.grad = w.master;
  long double sum = 0;
  for (const auto& t : w.grad)
    for (float x : t)
      sum += (long double)x * x;
  EXPECT_NEAR(global_norm(pool, w.grads()) / double(std::sqrt(sum)), 1, 1e-14);
  EXPECT_EQ(global_norm(pool, {}), 0.0);
  w.grad[6][200002] = NAN;
  EXPECT_TRUE(std::isnan(global_norm(pool, w.grads())));
  w.grad[6][200002] = -INFINITY;
  EXPECT_TRUE(std::isinf(global_norm(pool, w.grads())));
}

TEST(clip_factor, table) {
  struct row {
    double norm, max_norm, wanted;
  };
  const row table[] = {{0.5, 1, 1}, {2, 1, 1 / (2 + 1e-6)}, {2, 0, 1}, {0, 1, 1}, {1, 1, 1 / (1 + 1e-6)}};
  for (const auto& r : table)
    EXPECT_DOUBLE_EQ(clip_factor(r.norm, r.max_norm), r.wanted) << r.norm << " " << r.max_norm;
}

TEST(learning_rate, matches_the_formulas) {
  std::size_t compared = 0;
  for (const auto& c : learner_reference().at("schedule")) {
    optim_section optim;
    optim.lr = c.at("lr");
    optim.lr_scheduler_type = c.at("kind");
    optim.lr_warmup_steps = c.at("warmup");
    optim.min_lr_ratio = c.at("floor");
    std::int64_t t = 0;
    for (double wanted : c.at("lrs")) {
      ++t;
      EXPECT_NEAR(learning_rate(optim, t, c.at("total")), wanted, 1e-18) << c.dump() << " t " << t;
      ++compared;
    }
  }
  EXPECT_GT(compared, 100U);
}

TEST(adamw, another_number_of_tensors_is_refused) {
  thread_pool pool(1);
  weights w({{1, 2}, {3}});
  adamw optimizer(optim_section{}, w.views());
  w.pointers.pop_back();
  EXPECT_THROW(optimizer.step(pool, w.pointers, 1e-3, 1), error);
}

} // namespace
} // namespace troupe
