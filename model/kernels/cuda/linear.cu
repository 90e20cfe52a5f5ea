#include "core/error.hpp"
#include "model/kernels/cuda/few_rows.hpp"
#include "model/kernels/cuda/linear.hpp"
#include "model/kernels/cuda/simt_gemm.hpp"
#include <array>
#include <compare>
#include <cublasLt.h>
#include <map>
#include <string>

namespace troupe::cuda {
namespace {

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw error(errc::failed, std::string(what) + ": cuBLASLt says: " + cublasLtGetStatusString(status));
}

cudaDataType_t library_type(dtype type) {
  if (type == dtype::bf16)
    return CUDA_R_16BF;
  if (type == dtype::f32)
    return CUDA_R_32F;
  throw error(errc::unsupported, "matmul: type " + std::string(name_of(type)) + "; this product takes F32 and BF16");
}

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

/// Column-major, as the library sees it: d [rows, columns] = op(a) op(b) over `depth`.
struct product {
  dtype type, out;
  bool transpose_a, transpose_b, bias, accumulate;
  std::int64_t rows, columns, depth;
  auto operator<=>(const product&) const = default;
};

/// The library's descriptors of a product and its way to compute it.
struct plan {
  cublasLtMatmulDescOpaque_t operation{};
  cublasLtMatrixLayoutOpaque_t a{}, b{}, d{};
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;
};

template <class T>
void set(plan& p, cublasLtMatmulDescAttributes_t attribute, T value) {
  check(cublasLtMatmulDescSetAttribute(&p.operation, attribute, &value, sizeof value), "describing a product");
}

void describe(const product& what, plan& p) {
  const cudaDataType_t in = library_type(what.type), out = library_type(what.out);
  check(cublasLtMatmulDescInit(&p.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  set(p, CUBLASLT_MATMUL_DESC_TRANSA, what.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(p, CUBLASLT_MATMUL_DESC_TRANSB, what.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (what.bias) {
    set(p, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(p, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, in);
  }
  const auto layout = [](cublasLtMatrixLayoutOpaque_t& to, cudaDataType_t type, std::int64_t rows, std::int64_t columns) {
    check(cublasLtMatrixLayoutInit(&to, type, std::uint64_t(rows), std::uint64_t(columns), rows), "describing a matrix");
  };
  layout(p.a, in, what.transpose_a ? what.depth : what.rows, what.transpose_a ? what.rows : what.depth);
  layout(p.b, in, what.transpose_b ? what.columns : what.depth, what.transpose_b ? what.depth : what.columns);
  layout(p.d, out, what.rows, what.columns);
}

/// No workspace, and no sum that is cut over thread blocks.
bool in_one_piece(const cublasLtMatmulHeuristicResult_t& result) {
  std::int32_t pieces = 1;
  std::size_t written = 0;
  return result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize == 0 &&
         cublasLtMatmulAlgoConfigGetAttribute(&result.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &pieces, sizeof pieces, &written) ==
             CUBLAS_STATUS_SUCCESS &&
         pieces <= 1;
}

plan make_plan(cublasLtHandle_t handle, const product& what, std::size_t workspace) {
  plan p;
  describe(what, p);
  cublasLtMatmulPreferenceOpaque_t preference{};
  check(cublasLtMatmulPreferenceInit(&preference), "describing a product");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value), "describing a product");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t(workspace));
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         std::uint32_t(workspace ? CUBLASLT_REDUCTION_SCHEME_MASK : CUBLASLT_REDUCTION_SCHEME_NONE));
  for (const auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    prefer(attribute, std::uint32_t(16));
  std::array<cublasLtMatmulHeuristicResult_t, 8> results{};
  int n = 0;
  cublasLtMatmulAlgoGetHeuristic(handle, &p.operation, &p.a, &p.b, &p.d, &p.d, &preference, int(results.size()), results.data(), &n);
  for (int i = 0; i < n && !p.found; ++i)
    if (workspace ? results[std::size_t(i)].state == CUBLAS_STATUS_SUCCESS : in_one_piece(results[std::size_t(i)]))
      p.algorithm = results[std::size_t(i)].algo, p.found = true;
  return p;
}

} // namespace

struct matmul::impl {
  cublasLtHandle_t handle = nullptr;
  std::map<product, plan> plans;
  device_buffer workspace; // empty where bits count

  /// Whether the library can do it within the rules; then it is queued.
  bool run(const product& what, const void* a, const void* b, const void* bias, void* d, stream where) {
    constexpr std::size_t most_plans = 4096; // of one size each; a process meets few
    if (!aligned(a) || !aligned(b) || !aligned(d) || !aligned(bias))
      return false;
    auto at = plans.find(what);
    if (at == plans.end()) {
      if (plans.size() >= most_plans)
        plans.clear();
      at = plans.emplace(what, make_plan(handle, what, workspace.size())).first;
    }
    plan& p = at->second;
    if (!p.found)
      return false;
    if (what.bias)
      set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    const float one = 1, beta = what.accumulate ? 1.f : 0.f;
    check(cublasLtMatmul(handle, &p.operation, &one, a, &p.a, b, &p.b, &beta, d, &p.d, d, &p.d, &p.algorithm, workspace.data(),
                         workspace.size(), where),
          "a product");
    return true;
  }
};

matmul::matmul(bool exact) : impl_(std::make_unique<impl>()) {
  check(cublasLtCreate(&impl_->handle), "starting cuBLASLt");
  if (!exact)
    impl_->workspace = device_buffer(std::size_t{32} << 20);
}
bool matmul::exact() const { return impl_->workspace.size() == 0; }

matmul::~matmul() { cublasLtDestroy(impl_->handle); }

void matmul::forward(dtype type, const void* x, const void* w, const void* bias, std::int64_t n, std::int64_t m, std::int64_t k, void* y,
                     dtype out, stream where) {
  if (out != type && out != dtype::f32)
    throw error(errc::unsupported, "matmul: results of type " + std::string(name_of(out)) + "; they are of the operands' type or F32");
  if (n == 0)
    return;
  if (exact() && few_rows::takes(type, n, m, k) && (!bias || out == type) && aligned(x) && aligned(w) && aligned(y))
    return few_rows::product({x, w, bias, n, m, k}, y, out, where);
  // Which of these two does not depend on n. The library's float32 kernels add in orders that do.
  const bool regular = type == dtype::bf16 && k % 8 == 0 && m % 8 == 0;
  const product what{type, out, true, false, bias != nullptr, false, m, n, k};
  if (regular && impl_->run(what, w, x, bias, y, where))
    return;
  simt_gemm(type, {x, k, 1}, {w, k, 1}, bias, n, m, k, y, out, false, where);
}

void matmul::backward_input(dtype type, const void* dy, const void* w, std::int64_t n, std::int64_t m, std::int64_t k, float* dx,
                            stream where) {
  const bool regular = type == dtype::f32 || (k % 8 == 0 && m % 8 == 0);
  if (n == 0 || (regular && impl_->run({type, dtype::f32, false, false, false, false, k, n, m}, w, dy, nullptr, dx, where)))
    return;
  simt_gemm(type, {dy, m, 1}, {w, 1, k}, nullptr, n, k, m, dx, dtype::f32, false, where);
}

void matmul::backward_weight(dtype type, const void* dy, const void* x, std::int64_t n, std::int64_t m, std::int64_t k, float* dw,
                             stream where) {
  const bool regular = type == dtype::f32 || (k % 8 == 0 && m % 8 == 0);
  if (n == 0 || (regular && impl_->run({type, dtype::f32, false, true, false, true, k, m, n}, x, dy, nullptr, dw, where)))
    return;
  simt_gemm(type, {dy, 1, m}, {x, 1, k}, nullptr, m, k, n, dw, dtype::f32, true, where);
}

} // namespace troupe::cuda
