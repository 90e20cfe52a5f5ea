#include "model/least_squares.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <cmath>
#include <string>

namespace troupe {

namespace {

constexpr std::int64_t block_rows = 64; // that `add` takes at a time; the order of sums is that of the rows

void axpy(double a, const double* x, double* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i)
    y[i] += a * x[i];
}

// y [n] += the sum of a[r] * row r of x [rows, ld], in the order of rows.
void add_rows(const double* a, const double* x, std::int64_t ld, std::int64_t rows, double* y, std::int64_t n) {
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const double *x0 = x + r * ld, *x1 = x0 + ld, *x2 = x1 + ld, *x3 = x2 + ld;
    for (std::int64_t i = 0; i < n; ++i)
      y[i] = y[i] + a[r] * x0[i] + a[r + 1] * x1[i] + a[r + 2] * x2[i] + a[r + 3] * x3[i];
  }
  for (; r < rows; ++r)
    axpy(a[r], x + r * ld, y, n);
}

// a [n, n], lower half -> its Cholesky factor in place.
void factor(thread_pool& pool, std::vector<double>& a, std::int64_t n) {
  for (std::int64_t k = 0; k < n; ++k) {
    double* row = a.data() + k * n;
    if (!(row[k] > 0))
      throw error{errc::failed, "least squares: the inputs of the fit are linearly dependent (pivot " + std::to_string(k) +
                                    "); give more text or a larger --fit-ridge"};
    row[k] = std::sqrt(row[k]);
    for (std::int64_t i = k + 1; i < n; ++i)
      a[std::size_t(i * n + k)] /= row[k];
    pool.split(n - k - 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = k + 1 + begin; i < k + 1 + end; ++i) {
        const double l = a[std::size_t(i * n + k)];
        for (std::int64_t j = k + 1; j <= i; ++j)
          a[std::size_t(i * n + j)] -= l * a[std::size_t(j * n + k)];
      }
    });
  }
}

} // namespace

normal_equations::normal_equations(std::int64_t inputs, std::int64_t outputs)
    : inputs_(inputs), outputs_(outputs), xx_(std::size_t(inputs * inputs)), xy_(std::size_t(inputs * outputs)) {}

void normal_equations::add(thread_pool& pool, const float* x, const float* y, const double* weights, std::int64_t rows) {
  for (std::int64_t first = 0; first < rows; first += block_rows) {
    const std::int64_t n = std::min(block_rows, rows - first);
    const std::vector<double> wide_x(x + first * inputs_, x + (first + n) * inputs_),
        wide_y(y + first * outputs_, y + (first + n) * outputs_);
    pool.split(inputs_, [&](std::int64_t begin, std::int64_t end) {
      double scaled[block_rows];
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t r = 0; r < n; ++r)
          scaled[r] = weights[first + r] * wide_x[std::size_t(r * inputs_ + i)];
        add_rows(scaled, wide_x.data(), inputs_, n, xx_.data() + i * inputs_, i + 1);
        add_rows(scaled, wide_y.data(), outputs_, n, xy_.data() + i * outputs_, outputs_);
      }
    });
  }
}

std::vector<float> normal_equations::solve(thread_pool& pool, double ridge) const {
  std::vector<double> l = xx_, b = xy_;
  double trace = 0;
  for (std::int64_t i = 0; i < inputs_; ++i)
    trace += xx_[std::size_t(i * inputs_ + i)];
  for (std::int64_t i = 0; i < inputs_; ++i)
    l[std::size_t(i * inputs_ + i)] += ridge * trace / double(inputs_);
  factor(pool, l, inputs_);
  // Columns of the right-hand side are solved by themselves: L z = b, then L^T w = z.
  pool.split(outputs_, [&](std::int64_t begin, std::int64_t end) {
    const auto row = [&](std::int64_t i) { return b.data() + i * outputs_ + begin; };
    const std::int64_t n = end - begin;
    for (std::int64_t i = 0; i < inputs_; ++i) {
      for (std::int64_t j = 0; j < i; ++j)
        axpy(-l[std::size_t(i * inputs_ + j)], row(j), row(i), n);
      std::for_each(row(i), row(i) + n, [d = l[std::size_t(i * inputs_ + i)]](double& v) { v /= d; });
    }
    for (std::int64_t i = inputs_; i-- > 0;) {
      for (std::int64_t j = i + 1; j < inputs_; ++j)
        axpy(-l[std::size_t(j * inputs_ + i)], row(j), row(i), n);
      std::for_each(row(i), row(i) + n, [d = l[std::size_t(i * inputs_ + i)]](double& v) { v /= d; });
    }
  });
  std::vector<float> w(b.size());
  for (std::int64_t o = 0; o < outputs_; ++o)
    for (std::int64_t i = 0; i < inputs_; ++i)
      w[std::size_t(o * inputs_ + i)] = float(b[std::size_t(i * outputs_ + o)]);
  return w;
}

} // namespace troupe
