#include "model/kernels/cuda/draw.cuh"
#include <algorithm>

namespace troupe::cuda {
namespace {

using kernels::softmax_stats;

// What the cluster's first thread block gathers of a row.
struct row_sums {
  float weights[max_column_blocks]; // sums of blocks at the draw's temperature
  float softmax[max_column_blocks]; // and at the log-probability's
  row_maxima maxima;
};

// The 32 values of a warp added to `reached` one lane after the other, in double; `own` is the sum after this lane's.
__device__ double add_in_order(double reached, float value, double& own) {
  const int lane = int(threadIdx.x % 32);
#pragma unroll
  for (int l = 0; l < 32; ++l) {
    reached += double(__shfl_sync(0xffffffffu, value, l));
    if (l == lane)
      own = reached;
  }
  return reached;
}

// The first of n values, in order, at which the running sum exceeds `target`, else the last that is above 0; `reached`: the sum before,
// then the sum before the one found (all of them where none exceeds). value(i): 0 past the end. One whole warp. -> 0 where all are 0.
template <class F>
__device__ int first_above(int n, double target, double& reached, const F& value) {
  int last = 0;
  for (int i = 0; i < n; i += 32) {
    const float v = value(i + int(threadIdx.x % 32));
    double own = 0;
    const double before = reached, after = add_in_order(reached, v, own);
    if (const unsigned found = __ballot_sync(0xffffffffu, own > target)) {
      const int at = __ffs(int(found)) - 1;
      const double previous = __shfl_sync(0xffffffffu, own, max(at - 1, 0));
      reached = at == 0 ? before : previous;
      return i + at;
    }
    if (const unsigned positive = __ballot_sync(0xffffffffu, v > 0.f))
      last = i + 31 - __clz(int(positive));
    reached = after;
  }
  return last;
}

// Inverse of the cumulative distribution as sample_token has it: sums of blocks, then one block token by token. One whole warp.
__device__ int invert(const float* x, std::int64_t vocab, const float* sums, int n_blocks, float most, float inverse, double u) {
  const int lane = int(threadIdx.x % 32);
  double total = 0, own = 0;
  for (int i = 0; i < n_blocks; i += 32)
    total = add_in_order(total, i + lane < n_blocks ? sums[i + lane] : 0.f, own);
  const double target = u * total;
  double reached = 0;
  const int b = first_above(n_blocks, target, reached, [&](int i) { return i < n_blocks ? sums[i] : 0.f; });
  const float* const block = x + std::int64_t(b) * column_block;
  const int n = int(min(std::int64_t(column_block), vocab - std::int64_t(b) * column_block));
  const int chosen = first_above(n, target, reached, [&](int i) { return i < n ? exp_nonpositive((block[i] - most) * inverse) : 0.f; });
  return b * column_block + chosen;
}

// One cluster a draw; the last part, in a fixed order, is its first warp's.
__global__ void __launch_bounds__(row_threads) draw_rows(rows_to_draw rows) {
  __shared__ row_sums sums;
  wait_for_predecessors();
  const auto cluster = this_cluster();
  const std::int64_t n = blockIdx.x / cluster.num_blocks(), vocab = rows.vocab;
  const row_draw draw = rows.draws[n];
  if (truncates(draw))
    return;
  const int n_blocks = int((vocab + column_block - 1) / column_block), lane = int(threadIdx.x % 32);
  const warp_share share = own_share();
  const drawn_row row(rows, draw, n, n_blocks, sums.maxima);
  if (const std::int32_t refused = row.refusal()) {
    if (share.begin == 0 && lane == 0)
      rows.drawn[n] = {refused, 0.f};
    return;
  }
  const float inverse = inverse_of(draw.temperature);
  const float maximum = tempered(row.original_most, draw.logprob_temperature) + 0.f;
  row_sums& gathered = *cluster.map_shared_rank(&sums, 0);
  for (int b = share.begin; b < n_blocks; b += share.step) {
    const columns c(row.original, vocab, b, -INFINITY);
    const columns x = row.x == row.original ? c : columns(row.x, vocab, b, -INFINITY);
    float weight = 0.f, sum = 0.f;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      weight += exp_nonpositive((x.at[k] - row.most) * inverse);
      sum += exp_negative(tempered(c.at[k], draw.logprob_temperature) - maximum);
    }
    weight = warp_sum(weight), sum = warp_sum(sum);
    if (lane == 0)
      gathered.weights[b] = weight, gathered.softmax[b] = sum;
  }
  cluster.sync();
  if (share.begin != 0)
    return;
  const softmax_stats stats{maximum, sum_of_blocks(sums.softmax, n_blocks), 0.f};
  const int id = draw.temperature == 0 ? row.best : invert(row.x, vocab, sums.weights, n_blocks, row.most, inverse, draw.u);
  if (lane == 0)
    rows.drawn[n] = {id, logprob(stats, row.original[id], draw.logprob_temperature)};
}

} // namespace

void draw_tokens(const float* logits, std::int64_t vocab, const draw_arrays& arrays, float* scratch, stream where) {
  const std::int64_t each = arrays.edits ? edited_rows : std::max<std::int64_t>(arrays.n, 1);
  for (std::int64_t begin = 0; begin < arrays.n; begin += each) {
    const std::int64_t n = std::min(each, arrays.n - begin);
    const rows_to_draw rows{logits, vocab, arrays.draws + begin, scratch, arrays.drawn + begin};
    if (arrays.edits)
      queue_edits(rows, n, arrays.edits, arrays.entries, where);
    launch_rows("draw_tokens", draw_rows, n, vocab, where, rows);
    if (arrays.truncated)
      queue_truncated(rows, n, where);
    if (arrays.top)
      queue_listing(rows, n, arrays.top, where);
  }
}

} // namespace troupe::cuda
