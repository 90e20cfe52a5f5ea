#include "model/kernels/cuda/draw.cuh"

// Draws from what top-k, top-p and min-p leave of a row. Weights are whole numbers, so that no sum depends on an order.
namespace troupe::cuda {
namespace {

using mass = unsigned long long;

constexpr int n_bins = 2048;   // of a histogram; a row's first one has equal steps of the logit's distance from the greatest
constexpr float per_unit = 64; // of them; what lies in the last has no mass
constexpr int bins_a_thread = n_bins / row_threads;
constexpr int most_listed = 2048;
constexpr float unit = 0x1p40f; // the mass of the most probable token

// Logits as integers: a greater logit first, equal ones (0 and -0 too) alike.
__device__ unsigned order_of(float logit) {
  const unsigned bits = __float_as_uint(logit + 0.f);
  return bits >> 31 ? bits : ~(bits | 0x80000000u);
}
__device__ float of_order(unsigned order) { return __uint_as_float(order >> 31 ? order : ~order & 0x7fffffffu); }

// A row at its draw's temperature.
struct tempered_row {
  const float* x;
  std::int64_t vocab;
  float most, inverse, least; // least: the weight that min-p asks for
  __device__ float exponent(float logit) const { return (logit - most) * inverse; }
  __device__ float weight(float logit) const { return exp_nonpositive(exponent(logit)); }
  __device__ int bin(float logit) const { return int(fminf(-exponent(logit) * per_unit, float(n_bins - 1))); }
};
__device__ mass mass_of(float weight) { return __float2ull_rn(weight * unit); }

// The beginning of a row's order that is kept: up to a logit, of its equals up to an id.
struct cut {
  unsigned order;
  int last_id;
  __device__ bool keeps(float logit, int id) const {
    const unsigned o = order_of(logit);
    return o < order || (o == order && id <= last_id);
  }
};

// Sums of 64 bits from 32-bit additions, which shared memory has; without high ones: counts.
struct histogram {
  unsigned *low, *high;
  __device__ void add(int bin, mass w) const {
    if (!high) {
      atomicAdd(low + bin, unsigned(w));
      return;
    }
    const unsigned added = unsigned(w), carry = atomicAdd(low + bin, added) > ~added;
    if (const unsigned upper = unsigned(w >> 32) + carry)
      atomicAdd(high + bin, upper);
  }
  __device__ mass at(int bin) const { return high ? mass(high[bin]) << 32 | low[bin] : low[bin]; }
  __device__ void clear() const {
    for (int i = int(threadIdx.x); i < n_bins; i += row_threads) {
      low[i] = 0;
      if (high)
        high[i] = 0;
    }
  }
};

struct listed {
  float logit;
  int id;
};

// Where a running sum goes beyond a target: the place, the sum before it, what it adds.
struct found {
  unsigned at;
  mass before, amount;
};

struct row_memory {
  row_maxima maxima;
  union {
    struct {
      unsigned counts[n_bins], low[n_bins], high[n_bins];
    } bins;
    mass masses[max_column_blocks]; // kept, of blocks of columns
  };
  union {
    float softmax[max_column_blocks];
    listed list[most_listed];
  };
  float softmax_sum;
  mass warps[row_warps];
  unsigned least[row_warps], greatest[row_warps];
  found result;
  mass total;
  int bin, n_listed; // the bin that is listed, -1: none; what it holds, listed as far as there is room
  cut kept;
};

// Everything here is one whole thread block's, every thread of it the same arguments and results.

// The first bin whose running sum exceeds `target`; n_bins where none does. memory.total: of all bins.
__device__ found find(const histogram& h, mass target, row_memory& memory) {
  const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32), first = int(threadIdx.x) * bins_a_thread;
  mass own = 0;
  for (int i = 0; i < bins_a_thread; ++i)
    own += h.at(first + i);
  mass upto = own;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2)
    if (const mass other = __shfl_up_sync(0xffffffffu, upto, offset); lane >= offset)
      upto += other;
  if (lane == 31)
    memory.warps[warp] = upto;
  if (threadIdx.x == 0)
    memory.result.at = n_bins;
  __syncthreads();
  for (int i = 0; i < warp; ++i)
    upto += memory.warps[i];
  if (threadIdx.x == row_threads - 1)
    memory.total = upto;
  if (mass before = upto - own; before <= target && target < upto) {
    int bin = first;
    for (; before + h.at(bin) <= target; ++bin)
      before += h.at(bin);
    memory.result = {unsigned(bin), before, h.at(bin)};
  }
  __syncthreads();
  const found result = memory.result;
  __syncthreads();
  return result;
}

// The least and the greatest key of candidates.
template <class Each>
__device__ void key_range(const Each& each, row_memory& memory, unsigned& least, unsigned& greatest) {
  least = ~0u, greatest = 0;
  each([&](unsigned key, mass) { least = min(least, key), greatest = max(greatest, key); });
  least = __reduce_min_sync(0xffffffffu, least), greatest = __reduce_max_sync(0xffffffffu, greatest);
  if (threadIdx.x % 32 == 0)
    memory.least[threadIdx.x / 32] = least, memory.greatest[threadIdx.x / 32] = greatest;
  __syncthreads();
  for (int i = 0; i < row_warps; ++i)
    least = min(least, memory.least[i]), greatest = max(greatest, memory.greatest[i]);
  __syncthreads();
}

// The first key, ascending, whose running sum exceeds `target`. each(f): f(key, mass) of every candidate of this thread; amount: of all.
template <class Each>
__device__ found select(const Each& each, mass target, mass amount, const histogram& h, row_memory& memory) {
  unsigned least, greatest;
  key_range(each, memory, least, greatest);
  mass before = 0;
  while (least < greatest) {
    const int shift = max(0, 32 - __clz(int(greatest - least)) - 11);
    static_assert(n_bins == 1 << 11);
    h.clear();
    __syncthreads();
    each([&](unsigned key, mass w) {
      if (key >= least && key <= greatest)
        h.add(int((key - least) >> shift), w);
    });
    __syncthreads();
    const found f = find(h, target - before, memory);
    before += f.before, amount = f.amount;
    least += f.at << shift;
    greatest = least + min(greatest - least, (1u << shift) - 1);
  }
  return {least, before, amount};
}

// Calls f(logit, id) for what lies in the listed bin, from the list or, where it is too short, from the row.
template <class F>
__device__ void each_of_bin(const tempered_row& row, const row_memory& memory, const F& f) {
  if (memory.n_listed <= most_listed) {
    for (int i = int(threadIdx.x); i < memory.n_listed; i += row_threads)
      f(memory.list[i].logit, memory.list[i].id);
    return;
  }
  for (std::int64_t i = threadIdx.x; i < row.vocab; i += row_threads)
    if (const float logit = row.x[i]; row.bin(logit) == memory.bin)
      f(logit, int(i));
}

// Keeps `n` of the tokens with a logit, the lowest ids, of which there are `equals`.
__device__ void cut_equals(const tempered_row& row, unsigned order, mass n, mass equals, row_memory& memory) {
  int last_id = nowhere;
  if (n < equals) {
    const auto each = [&](const auto& f) {
      each_of_bin(row, memory, [&](float logit, int id) {
        if (order_of(logit) == order)
          f(unsigned(id), mass(1));
      });
    };
    last_id = int(select(each, n - 1, equals, {memory.bins.counts, nullptr}, memory).at);
  }
  if (threadIdx.x == 0)
    memory.kept = {order, last_id};
  __syncthreads();
}

// Top-k of the listed bin, k of which are to be kept; `amount`: tokens in it. Leaves the masses of what is kept in the histogram.
__device__ void cut_count(const tempered_row& row, mass k, mass amount, row_memory& memory) {
  const auto each = [&](const auto& f) { each_of_bin(row, memory, [&](float logit, int) { f(order_of(logit), mass(1)); }); };
  const found f = select(each, k - 1, amount, {memory.bins.counts, nullptr}, memory);
  cut_equals(row, f.at, k - f.before, f.amount, memory);
  const histogram masses{memory.bins.low, memory.bins.high};
  for (int i = memory.bin + int(threadIdx.x); i < n_bins; i += row_threads)
    masses.low[i] = masses.high[i] = 0;
  __syncthreads();
  const cut kept = memory.kept;
  each_of_bin(row, memory, [&](float logit, int id) {
    if (kept.keeps(logit, id))
      masses.add(memory.bin, mass_of(row.weight(logit)));
  });
  __syncthreads();
}

// Top-p of the listed bin, the first of which reach `wanted`; `amount`: the kept mass in it.
__device__ void cut_mass(const tempered_row& row, mass wanted, mass amount, row_memory& memory) {
  const cut kept = memory.kept;
  const auto each = [&](const auto& f) {
    each_of_bin(row, memory, [&](float logit, int id) {
      if (kept.keeps(logit, id))
        f(order_of(logit), mass_of(row.weight(logit)));
    });
  };
  const found f = select(each, wanted - 1, amount, {memory.bins.low, memory.bins.high}, memory);
  const mass one = mass_of(row.weight(of_order(f.at)));
  const mass n = (wanted - f.before + one - 1) / one, equals = f.amount / one;
  if (f.at == kept.order && n >= equals) // no less than top-k left
    return;
  cut_equals(row, f.at, n, equals, memory);
}

// Everything from here on is a whole cluster's. `first`: the memory of its first block, which selects.

// Lists tokens of which `wanted` is true, in no order.
template <class F>
__device__ void list_tokens(const tempered_row& row, int n_blocks, row_memory& first, const F& wanted) {
  const warp_share share = own_share();
  for (int b = share.begin; b < n_blocks; b += share.step) {
    const columns c(row.x, row.vocab, b, -INFINITY);
#pragma unroll
    for (int k = 0; k < 8; ++k)
      if (const int id = b * column_block + int(threadIdx.x % 32) + 32 * k; c.at[k] >= -FLT_MAX && wanted(c.at[k], id))
        if (const int at = atomicAdd(&first.n_listed, 1); at < most_listed)
          first.list[at] = {c.at[k], id};
  }
}

// One of top-k and top-p: the first block finds the bin where it ends, all list it, the first cuts there. target(): the bin's is the first
// whose running sum in `h` exceeds it.
template <class Target, class Cut>
__device__ void cut_row(const tempered_row& row, int n_blocks, const histogram& h, row_memory& memory, const Target& target,
                        const Cut& cut_bin) {
  const auto cluster = this_cluster();
  row_memory& first = *cluster.map_shared_rank(&memory, 0);
  const bool leads = cluster.block_rank() == 0;
  found f{};
  mass aim = 0;
  if (leads) {
    aim = target();
    f = find(h, aim, memory);
    if (threadIdx.x == 0)
      memory.bin = f.at < n_bins ? int(f.at) : -1, memory.n_listed = 0;
  }
  cluster.sync();
  const int bin = first.bin;
  if (bin >= 0)
    list_tokens(row, n_blocks, first, [&](float logit, int) { return row.bin(logit) == bin; });
  cluster.sync();
  if (bin >= 0 && leads)
    cut_bin(aim + 1 - f.before, f.amount);
}

// What is measured of a row.
struct wanted_sums {
  bool counts, masses;
  int n_bins; // of all
  float maximum, logprob_temperature;
};

// Counts and masses of the row's bins and its softmax's sum, all in the first block.
__device__ void measure(const tempered_row& row, const float* original, const wanted_sums& wanted, int n_blocks, row_memory& memory) {
  const auto cluster = this_cluster();
  row_memory& first = *cluster.map_shared_rank(&memory, 0);
  const warp_share share = own_share();
  const histogram counts{memory.bins.counts, nullptr}, masses{memory.bins.low, memory.bins.high};
  counts.clear(), masses.clear();
  __syncthreads();
  for (int b = share.begin; b < n_blocks; b += share.step) {
    const columns c(original, row.vocab, b, -INFINITY);
    const columns x = row.x == original ? c : columns(row.x, row.vocab, b, -INFINITY);
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      sum += exp_negative(tempered(c.at[k], wanted.logprob_temperature) - wanted.maximum);
      const int bin = row.bin(x.at[k]);
      if (bin < wanted.n_bins && x.at[k] >= -FLT_MAX) {
        if (wanted.counts)
          counts.add(bin, 1);
        if (wanted.masses)
          masses.add(bin, mass_of(row.weight(x.at[k])));
      }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
      first.softmax[b] = sum;
  }
  cluster.sync();
  if (cluster.block_rank() == 0) {
    for (unsigned other = 1; other < cluster.num_blocks(); ++other) {
      const row_memory& from = *cluster.map_shared_rank(&memory, other);
      for (int i = int(threadIdx.x); i < n_bins; i += row_threads) {
        counts.low[i] += from.bins.counts[i];
        const mass sum = masses.at(i) + (mass(from.bins.high[i]) << 32 | from.bins.low[i]);
        masses.low[i] = unsigned(sum), masses.high[i] = unsigned(sum >> 32);
      }
    }
    if (threadIdx.x < 32) {
      const float sum = sum_of_blocks(memory.softmax, n_blocks);
      if (threadIdx.x == 0)
        memory.softmax_sum = sum;
    }
    __syncthreads();
  }
}

__device__ mass sum_of_lanes(mass v) { // each below 2^51
  const unsigned low = __reduce_add_sync(0xffffffffu, unsigned(v) & 0xffffffu);
  return (mass(__reduce_add_sync(0xffffffffu, unsigned(v >> 24))) << 24) + low;
}

// What is kept of a column, 0 elsewhere.
__device__ mass kept_mass(const tempered_row& row, const cut& kept, float logit, int id) {
  if (!kept.keeps(logit, id))
    return 0;
  const float weight = row.weight(logit);
  return weight >= row.least ? mass_of(weight) : 0;
}

// Sums of what is kept, of every block of columns.
__device__ void sum_blocks(const tempered_row& row, const cut& kept, int n_blocks, row_memory& first) {
  const warp_share share = own_share();
  for (int b = share.begin; b < n_blocks; b += share.step) {
    const columns c(row.x, row.vocab, b, -INFINITY);
    mass sum = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k)
      sum += kept_mass(row, kept, c.at[k], b * column_block + int(threadIdx.x % 32) + 32 * k);
    sum = sum_of_lanes(sum);
    if (threadIdx.x % 32 == 0)
      first.masses[b] = sum;
  }
}

// The first of n values, in order, whose running sum exceeds `target`, which the sum before is taken from. One whole warp.
template <class F>
__device__ int first_above(int n, mass& target, const F& value) {
  const int lane = int(threadIdx.x % 32);
  for (int i = 0; i < n; i += 32) {
    mass upto = i + lane < n ? value(i + lane) : 0;
    const mass own = upto;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2)
      if (const mass other = __shfl_up_sync(0xffffffffu, upto, offset); lane >= offset)
        upto += other;
    if (const unsigned beyond = __ballot_sync(0xffffffffu, upto > target)) {
      const int at = __ffs(int(beyond)) - 1;
      target -= __shfl_sync(0xffffffffu, upto - own, at);
      return i + at;
    }
    target -= __shfl_sync(0xffffffffu, upto, 31);
  }
  return n - 1;
}

// Inverse of the cumulative distribution of what is kept. One whole warp.
__device__ int invert(const tempered_row& row, const cut& kept, const mass* masses, int n_blocks, double u) {
  mass total = 0;
  for (int b = int(threadIdx.x % 32); b < n_blocks; b += 32)
    total += masses[b];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    total += __shfl_xor_sync(0xffffffffu, total, offset);
  mass target = __umul64hi(mass(u * 0x1p53) << 11, total); // u * total, rounded down
  const int b = first_above(n_blocks, target, [&](int i) { return masses[i]; });
  const int first = b * column_block, n = int(min(std::int64_t(column_block), row.vocab - first));
  return first + first_above(n, target, [&](int i) { return kept_mass(row, kept, row.x[first + i], first + i); });
}

__device__ void cut_to_count(const tempered_row& row, int n_blocks, int k, row_memory& memory) {
  cut_row(
      row, n_blocks, {memory.bins.counts, nullptr}, memory, [&] { return mass(k - 1); },
      [&](mass rest, mass amount) { cut_count(row, rest, amount, memory); });
}
__device__ void cut_to_mass(const tempered_row& row, int n_blocks, double p, row_memory& memory) {
  const histogram masses{memory.bins.low, memory.bins.high};
  const auto target = [&] {
    find(masses, ~mass(0), memory);
    return max(mass(1), mass(ceil(p * double(memory.total)))) - 1;
  };
  cut_row(row, n_blocks, masses, memory, target, [&](mass rest, mass amount) { cut_mass(row, rest, amount, memory); });
}

// One cluster a draw; cuts and the last part are its first block's.
__global__ void __launch_bounds__(row_threads, 2) draw_truncated_rows(rows_to_draw rows) {
  __shared__ row_memory memory;
  const auto cluster = this_cluster();
  const std::int64_t n = blockIdx.x / cluster.num_blocks();
  const row_draw draw = rows.draws[n];
  if (!truncates(draw))
    return;
  const int n_blocks = int((rows.vocab + column_block - 1) / column_block);
  const drawn_row of_draw(rows, draw, n, n_blocks, memory.maxima);
  if (const std::int32_t refused = of_draw.refusal()) {
    if (cluster.block_rank() == 0 && threadIdx.x == 0)
      rows.drawn[n] = {refused, 0.f};
    return;
  }
  const tempered_row row{of_draw.x, rows.vocab, of_draw.most, inverse_of(draw.temperature), __double2float_ru(draw.min_p)};
  const float maximum = tempered(of_draw.original_most, draw.logprob_temperature) + 0.f;
  if (threadIdx.x == 0)
    memory.kept = {~0u, nowhere};
  measure(row, of_draw.original, {draw.top_k > 0, draw.top_p < 1, n_bins - 1, maximum, draw.logprob_temperature}, n_blocks, memory);
  if (draw.top_k > 0)
    cut_to_count(row, n_blocks, draw.top_k, memory);
  if (draw.top_p < 1)
    cut_to_mass(row, n_blocks, draw.top_p, memory);
  cluster.sync();
  row_memory& first = *cluster.map_shared_rank(&memory, 0);
  const cut kept = first.kept;
  sum_blocks(row, kept, n_blocks, first);
  cluster.sync();
  if (cluster.block_rank() != 0 || threadIdx.x >= 32)
    return;
  const int id = invert(row, kept, memory.masses, n_blocks, draw.u);
  if (threadIdx.x == 0)
    rows.drawn[n] = {id, logprob({maximum, memory.softmax_sum, 0.f}, of_draw.original[id], draw.logprob_temperature)};
}

// The draw's n_top most probable ids, each to the place that as many others come before.
__global__ void __launch_bounds__(row_threads, 2) list_most_probable(rows_to_draw rows, drawn_token* top) {
  __shared__ row_memory memory;
  const auto cluster = this_cluster();
  const std::int64_t n = blockIdx.x / cluster.num_blocks();
  const row_draw draw = rows.draws[n];
  if (draw.n_top == 0)
    return;
  const int n_blocks = int((rows.vocab + column_block - 1) / column_block);
  tempered_row row{rows.logits + draw.row * rows.vocab, rows.vocab, 0.f, 1.f, 0.f};
  int best = 0;
  greatest_of_row(row.x, rows.vocab, n_blocks, false, memory.maxima, row.most, best);
  if (row.most == INFINITY)
    return;
  const float maximum = tempered(row.most, draw.logprob_temperature) + 0.f;
  measure(row, row.x, {true, false, n_bins, maximum, draw.logprob_temperature}, n_blocks, memory);
  cut_to_count(row, n_blocks, draw.n_top, memory);
  if (threadIdx.x == 0)
    memory.n_listed = 0;
  cluster.sync();
  row_memory& first = *cluster.map_shared_rank(&memory, 0);
  const cut kept = first.kept;
  list_tokens(row, n_blocks, first, [&](float logit, int id) { return kept.keeps(logit, id); });
  cluster.sync();
  if (cluster.block_rank() != 0)
    return;
  for (int i = int(threadIdx.x); i < draw.n_top; i += row_threads) {
    const auto [logit, id] = memory.list[i];
    const cut own{order_of(logit), id - 1};
    int place = 0;
    for (int j = 0; j < draw.n_top; ++j)
      place += own.keeps(memory.list[j].logit, memory.list[j].id);
    top[draw.top_begin + place] = {id, logprob({maximum, memory.softmax_sum, 0.f}, logit, draw.logprob_temperature)};
  }
}

} // namespace

void queue_truncated(const rows_to_draw& rows, std::int64_t n, stream where) {
  launch_rows("draw_tokens: truncation", draw_truncated_rows, n, rows.vocab, where, rows);
}

void queue_listing(const rows_to_draw& rows, std::int64_t n, drawn_token* top, stream where) {
  launch_rows("draw_tokens: alternatives", list_most_probable, n, rows.vocab, where, rows, top);
}

} // namespace troupe::cuda
