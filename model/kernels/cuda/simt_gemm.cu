#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/numeric.cuh"
#include "model/kernels/cuda/simt_gemm.hpp"

namespace troupe::cuda {
namespace {

constexpr int tile_columns = 64, tile_depth = 16, side = 16; // threads: side x side, each Rows x 4 outputs

// Rows first .. first+R-1 of a matrix, columns p .. p+15, as [16][R]; zeros outside.
template <int R, class T>
__device__ void load_tile(float (*tile)[R + 4], const T* data, std::int64_t row, std::int64_t column, std::int64_t first, std::int64_t rows,
                          std::int64_t p, std::int64_t k) {
  for (int i = int(threadIdx.x); i < R * tile_depth; i += side * side) {
    // Neighbouring threads read neighbouring elements, whichever way the matrix lies.
    const int r = column == 1 ? i / tile_depth : i % R, c = column == 1 ? i % tile_depth : i / R;
    tile[c][r] = first + r < rows && p + c < k ? widen(data[(first + r) * row + (p + c) * column]) : 0.f;
  }
}

template <class T, class Out, int Rows>
__global__ void __launch_bounds__(side* side)
    gemm_tile(const T* a, std::int64_t a_row, std::int64_t a_column, const T* b, std::int64_t b_row, std::int64_t b_column, const T* bias,
              std::int64_t n, std::int64_t m, std::int64_t k, Out* out, bool accumulate) {
  constexpr int tile_rows = side * Rows;
  __shared__ float as[tile_depth][tile_rows + 4], bs[tile_depth][tile_columns + 4];
  const std::int64_t row = std::int64_t(blockIdx.y) * tile_rows, column = std::int64_t(blockIdx.x) * tile_columns;
  const int ty = int(threadIdx.x) / side * Rows, tx = int(threadIdx.x) % side * 4;
  float sum[Rows][4] = {};
  for (std::int64_t p = 0; p < k; p += tile_depth) {
    load_tile<tile_rows>(as, a, a_row, a_column, row, n, p, k);
    load_tile<tile_columns>(bs, b, b_row, b_column, column, m, p, k);
    __syncthreads();
#pragma unroll
    for (int c = 0; c < tile_depth; ++c)
#pragma unroll
      for (int i = 0; i < Rows; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sum[i][j] = __fmaf_rn(as[c][ty + i], bs[c][tx + j], sum[i][j]);
    __syncthreads();
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < 4; ++j) {
      const std::int64_t r = row + ty + i, c = column + tx + j;
      if (r >= n || c >= m)
        continue;
      const float v = bias ? sum[i][j] + widen(bias[c]) : sum[i][j];
      Out& to = out[r * m + c];
      round_to(to, accumulate ? widen(to) + v : v);
    }
}

template <class T, class Out>
void typed(gemm_operand a, gemm_operand b, const void* bias, std::int64_t n, std::int64_t m, std::int64_t k, void* out, bool accumulate,
           stream where) {
  const int rows = n <= side ? 1 : 4;
  const auto kernel = rows == 1 ? gemm_tile<T, Out, 1> : gemm_tile<T, Out, 4>;
  kernel<<<dim3(ceil_div(m, tile_columns), ceil_div(n, side * rows)), side * side, 0, where>>>(
      static_cast<const T*>(a.data), a.row, a.column, static_cast<const T*>(b.data), b.row, b.column, static_cast<const T*>(bias), n, m, k,
      static_cast<Out*>(out), accumulate);
  check(cudaGetLastError(), "simt_gemm");
}

} // namespace

void simt_gemm(dtype type, gemm_operand a, gemm_operand b, const void* bias, std::int64_t n, std::int64_t m, std::int64_t k, void* out,
               dtype to, bool accumulate, stream where) {
  if (n == 0 || m == 0)
    return;
  with_type(type, "simt_gemm", [&](auto t) {
    using T = decltype(t);
    if (to == dtype::f32)
      typed<T, float>(a, b, bias, n, m, k, out, accumulate, where);
    else
      typed<T, T>(a, b, bias, n, m, k, out, accumulate, where);
  });
}

} // namespace troupe::cuda
