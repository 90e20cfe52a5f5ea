#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/few_rows_mma.cuh"

namespace troupe::cuda::few_rows {
namespace {

// What measured best. together: a block's tiles are a divisor of so many; 0: any.
streaming chosen(const operands& a, int together) {
  streaming how;
  if (a.k <= 2048 && a.m > 2048)
    how.rows = 64; // short chains: more of them side by side
  while (together && together % (how.rows / tile_rows) != 0)
    how.rows -= tile_rows;
  return how;
}

template <class Output>
void launch(operands a, const Output& out, const streaming* how, stream where) {
  if (a.norm && (a.n > 1 || a.k > most_normalised)) { // every block would do it for all rows
    add_rms_norm(dtype::bf16, nullptr, const_cast<void*>(a.x), a.norm, a.eps, a.n, a.k, a.normalised, where);
    a.x = a.normalised, a.norm = nullptr;
  }
  const streaming best = how ? *how : chosen(a, out.together());
  if (out.together() && out.together() % (best.rows / tile_rows) != 0)
    throw error(errc::bad_shape, "a product of few rows: " + std::to_string(best.rows) + " rows of the matrix at a time for heads of " +
                                     std::to_string(out.together() * tile_rows) + "; they must lie within half a head");
  if (a.norm)
    launch_kernel<1, true>(a, out, best, where);
  else if (a.n <= 8)
    launch_kernel<1, false>(a, out, best, where);
  else
    launch_kernel<2, false>(a, out, best, where);
}

} // namespace

int multiprocessors() {
  static const int count = [] {
    int device = 0, n = 0;
    check(cudaGetDevice(&device), "asking for the GPU");
    check(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device), "asking for the GPU's multiprocessors");
    return n;
  }();
  return count;
}

// A matrix [rows, k] as [k / 64][rows][64], in boxes [pieces][box_rows][64] with the 128-byte swizzle.
CUtensorMap map_of(const void* data, std::int64_t rows, std::int64_t k, int box_rows, int pieces) {
  static const auto encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &result), "finding tensor maps");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(f);
  }();
  CUtensorMap map{};
  const cuuint64_t sizes[] = {piece_columns, cuuint64_t(rows), cuuint64_t(k / piece_columns)}, strides[] = {cuuint64_t(2 * k), piece_bytes};
  const cuuint32_t box[] = {piece_columns, cuuint32_t(box_rows), cuuint32_t(pieces)}, steps[] = {1, 1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw error(errc::failed, "a product of few rows: describing a matrix [" + std::to_string(rows) + ", " + std::to_string(k) +
                                  "]: CUDA says: error " + std::to_string(int(result)));
  return map;
}

bool takes(dtype type, std::int64_t n, std::int64_t m, std::int64_t k) {
#ifdef TROUPE_WGMMA
  return type == dtype::bf16 && n <= most_rows && k % piece_columns == 0 && m % tile_rows == 0 && m < (1 << 24) && k < (1 << 20);
#else
  return false;
#endif
}

void product(const operands& a, void* y, dtype out, stream where, const streaming* how) {
  const auto* bias = static_cast<const bf16*>(a.bias);
  if (out == dtype::f32)
    launch(a, plain_output<float>{static_cast<float*>(y), bias, int(a.m)}, how, where);
  else
    launch(a, plain_output<bf16>{static_cast<bf16*>(y), bias, int(a.m)}, how, where);
}

void add_product(const operands& a, void* residual, stream where, const streaming* how) {
  launch(a, added_output{static_cast<bf16*>(residual), static_cast<const bf16*>(a.bias), int(a.m)}, how, where);
}

void gated_product(const operands& a, void* act, stream where, const streaming* how) {
  launch(a, gated_output{static_cast<bf16*>(act), static_cast<const bf16*>(a.bias), int(a.m / 2)}, how, where);
}

void rotated_product(const operands& a, const rotation& r, void* qkv, stream where, const streaming* how) {
  launch(a,
         rotated_output{r.shape, static_cast<bf16*>(qkv), static_cast<bf16*>(r.cache), static_cast<const bf16*>(a.bias), r.positions,
                        r.slots, r.table},
         how, where);
}

} // namespace troupe::cuda::few_rows
