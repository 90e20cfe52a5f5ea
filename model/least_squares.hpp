#pragma once
#include "model/kernels/thread_pool.hpp"
#include <cstdint>
#include <vector>

namespace troupe {

/// Weighted least squares over rows that come in pieces: normal equations in float64, with ridge. One caller at a time.
class normal_equations {
public:
  normal_equations(std::int64_t inputs, std::int64_t outputs);
  /// x [rows, inputs], y [rows, outputs], weights [rows] >= 0: adds them. The order of rows is the order of sums.
  void add(thread_pool& pool, const float* x, const float* y, const double* weights, std::int64_t rows);
  /// W [outputs, inputs] that minimises sum w |y - W x|^2 + lambda |W|^2, lambda = ridge times the mean of x's second moments.
  /// Throws errc::failed when the system is singular; a larger ridge helps.
  std::vector<float> solve(thread_pool& pool, double ridge) const;

private:
  std::int64_t inputs_, outputs_;
  std::vector<double> xx_, xy_; // [inputs, inputs] lower half, [inputs, outputs]
};

} // namespace troupe
