#include "model/kernels/cuda/softmax.cuh"
#include "model/kernels/cuda/softmax.hpp"
#include <limits>

namespace troupe::cuda {
namespace {

using kernels::softmax_stats;

constexpr float lowest = -std::numeric_limits<float>::infinity();

// One cluster a row. The row is read twice, the second time from a cache: e^(z - max) needs the greatest first.
template <bool Moment>
__global__ void __launch_bounds__(row_threads)
    softmax_stats_rows(const float* logits, std::int64_t vocab, float temperature, softmax_stats* stats) {
  __shared__ float sums[max_column_blocks], moments[Moment ? max_column_blocks : 1], maxima[row_cluster * row_warps];
  wait_for_predecessors();
  const auto cluster = this_cluster();
  const std::int64_t row = blockIdx.x / cluster.num_blocks();
  const float* const x = logits + row * vocab;
  const int n_blocks = int((vocab + column_block - 1) / column_block), lane = int(threadIdx.x % 32);
  const warp_share share = own_share();
  float most = lowest;
  for (int b = share.begin; b < n_blocks; b += share.step) {
    const columns c(x, vocab, b, lowest);
#pragma unroll
    for (int k = 0; k < 8; ++k)
      most = fmaxf(most, c.at[k]);
  }
  most = warp_max(most);
  cluster.sync(); // all blocks have begun
  if (lane < int(cluster.num_blocks()))
    cluster.map_shared_rank(maxima, lane)[share.begin] = most;
  cluster.sync();
  most = lowest;
  for (int i = lane; i < share.step; i += 32)
    most = fmaxf(most, maxima[i]);
  const float maximum = tempered(warp_max(most), temperature) + 0.f; // no -0
  float* const all_sums = cluster.map_shared_rank(sums, 0);
  float* const all_moments = cluster.map_shared_rank(moments, 0);
  for (int b = share.begin; b < n_blocks; b += share.step) {
    const columns c(x, vocab, b, lowest);
    float sum = 0.f, moment = 0.f;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float z = tempered(c.at[k], temperature) - maximum, e = exp_negative(z);
      sum += e;
      if (Moment)
        moment = __fmaf_rn(e, clamp(z, -87.f, 87.f), moment);
    }
    sum = warp_sum(sum);
    if (Moment)
      moment = warp_sum(moment);
    if (lane == 0) {
      all_sums[b] = sum;
      if (Moment)
        all_moments[b] = moment;
    }
  }
  cluster.sync();
  if (share.begin != 0)
    return;
  const float sum = sum_of_blocks(sums, n_blocks), moment = Moment ? sum_of_blocks(moments, n_blocks) : 0.f;
  if (lane == 0)
    stats[row] = {maximum, sum, moment};
}

__global__ void logprobs_of_ids(const float* logits, std::int64_t vocab, float temperature, const softmax_stats* stats,
                                const std::int32_t* rows, const std::int32_t* ids, std::int64_t n, float* logprobs) {
  const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n)
    logprobs[i] = logprob(stats[rows[i]], logits[rows[i] * vocab + ids[i]], temperature);
}

constexpr int backward_threads = 256;
constexpr int backward_columns = 4096; // of one thread block

// d loss / d logits: (sum_t d_t (onehot_t - p) - d_entropy p (log p + H)) / temperature, log p = z - max - log_sum.
struct row_gradient {
  float temperature, maximum, log_sum, entropy, d_entropy, total;
  // d: of this element's own log-probability.
  __device__ float operator()(float logit, float d) const {
    const float lp = (tempered(logit, temperature) - maximum) - log_sum, p = exp_negative(lp);
    return tempered(d + p * __fmaf_rn(-d_entropy, clamp(lp, -87.f, 0.f) + entropy, -total), temperature);
  }
};

// Block (i, r): columns i * backward_columns .. of row r; then those of its entries that lie there once more, with their own term.
template <class T, int N>
__global__ void __launch_bounds__(backward_threads)
    softmax_gradient(const float* logits, std::int64_t vocab, float temperature, const softmax_stats* stats, const std::int32_t* begin,
                     const std::int32_t* entry_ids, const float* d_logprob, const float* d_entropy, T* d_logits) {
  __shared__ row_gradient of_row;
  const std::int64_t row = blockIdx.y, first = std::int64_t(blockIdx.x) * backward_columns;
  const std::int64_t end = min(vocab, first + backward_columns);
  const int entry = begin[row], entries_end = begin[row + 1];
  if (threadIdx.x == 0) {
    const softmax_stats s = stats[row];
    float total = 0.f;
    for (int i = entry; i < entries_end; ++i)
      total += d_logprob[i];
    const float ls = log_sum(s), de = d_entropy ? d_entropy[row] : 0.f;
    of_row = {temperature, s.maximum, ls, de != 0.f ? ls - __fdiv_rn(s.moment, s.sum) : 0.f, de, total};
  }
  __syncthreads();
  const row_gradient g = of_row;
  const float* const x = logits + row * vocab;
  T* const out = d_logits + row * vocab;
  for (std::int64_t j = first + threadIdx.x * N; j < end; j += backward_threads * N) {
    const auto v = *reinterpret_cast<const vec<float, N>*>(x + j);
    vec<T, N> d;
#pragma unroll
    for (int k = 0; k < N; ++k)
      round_to(d.at[k], g(v.at[k], 0.f));
    *reinterpret_cast<vec<T, N>*>(out + j) = d;
  }
  __syncthreads();
  for (int i = entry + int(threadIdx.x); i < entries_end; i += backward_threads)
    if (const int id = entry_ids[i]; id >= first && id < end)
      round_to(out[id], g(x[id], d_logprob[i]));
}

} // namespace

void softmax_rows(const float* logits, std::int64_t rows, std::int64_t vocab, float temperature, bool moment, softmax_stats* stats,
                  stream where) {
  launch_rows("softmax_rows", moment ? softmax_stats_rows<true> : softmax_stats_rows<false>, rows, vocab, where, logits, vocab, temperature,
              stats);
}

void logprobs_of(const float* logits, std::int64_t vocab, float temperature, const softmax_stats* stats, const std::int32_t* rows,
                 const std::int32_t* ids, std::int64_t n, float* logprobs, stream where) {
  if (n == 0)
    return;
  logprobs_of_ids<<<ceil_div(n, 128), 128, 0, where>>>(logits, vocab, temperature, stats, rows, ids, n, logprobs);
  check(cudaGetLastError(), "logprobs_of");
}

void softmax_backward(dtype type, const float* logits, std::int64_t rows, std::int64_t vocab, float temperature, const softmax_stats* stats,
                      const std::int32_t* begin, const std::int32_t* entry_ids, const float* d_logprob, const float* d_entropy,
                      void* d_logits, stream where) {
  if (rows == 0)
    return;
  with_type(type, "softmax_backward", [&](auto t) {
    using T = decltype(t);
    const bool vectors = vocab % 4 == 0 && aligned(logits) && aligned(d_logits);
    const auto kernel = vectors ? softmax_gradient<T, 4> : softmax_gradient<T, 1>;
    kernel<<<dim3(ceil_div(vocab, backward_columns), unsigned(rows)), backward_threads, 0, where>>>(
        logits, vocab, temperature, stats, begin, entry_ids, d_logprob, d_entropy, static_cast<T*>(d_logits));
  });
  check(cudaGetLastError(), "softmax_backward");
}

} // namespace troupe::cuda
