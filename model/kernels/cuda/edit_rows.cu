#include "model/kernels/cuda/draw.cuh"

namespace troupe::cuda {
namespace {

__device__ float finite(float v) { return fminf(fmaxf(v, -FLT_MAX), FLT_MAX); }

// Changes the logits that a list names; what is masked stays so. A whole cluster's.
template <class F>
__device__ void edit(float* row, const logit_edit* list, int n, const F& change) {
  if (n == 0)
    return;
  const auto cluster = this_cluster();
  for (unsigned i = cluster.thread_rank(); i < unsigned(n); i += cluster.num_threads()) {
    float& v = row[list[i].id];
    if (v >= -FLT_MAX)
      v = change(v, list[i].value);
  }
  cluster.sync();
}

// One cluster a draw: a copy of its row, changed.
__global__ void __launch_bounds__(row_threads) edit_rows(rows_to_draw rows, const row_edits* edits, const logit_edit* entries) {
  const auto cluster = this_cluster();
  const std::int64_t n = blockIdx.x / cluster.num_blocks();
  const row_draw draw = rows.draws[n];
  if (draw.edits < 0)
    return;
  const row_edits e = edits[draw.edits];
  const float* const from = rows.logits + draw.row * rows.vocab;
  float* const to = rows.edited + n * rows.vocab;
  for (std::int64_t i = cluster.thread_rank(); i < rows.vocab; i += cluster.num_threads())
    to[i] = e.n_allowed > 0 ? -INFINITY : from[i];
  cluster.sync();
  if (e.n_allowed > 0) {
    const logit_edit* const allowed = entries + e.allowed_begin;
    for (unsigned i = cluster.thread_rank(); i < unsigned(e.n_allowed); i += cluster.num_threads())
      to[allowed[i].id] = from[allowed[i].id];
    cluster.sync();
  }
  const logit_edit* list = entries + e.begin;
  edit(to, list, e.n_added, [](float v, float value) { return finite(v + value); });
  list += e.n_added;
  edit(to, list, e.n_repeated, [&](float v, float) { return finite(v > 0 ? __fdiv_rn(v, e.repetition) : v * e.repetition); });
  list += e.n_repeated;
  edit(to, list, e.n_penalised, [&](float v, float value) { return finite(v - value - e.presence); });
  list += e.n_penalised;
  edit(to, list, e.n_masked, [](float, float) { return -INFINITY; });
}

} // namespace

void queue_edits(const rows_to_draw& rows, std::int64_t n, const row_edits* edits, const logit_edit* entries, stream where) {
  launch_rows("edit_rows", edit_rows, n, rows.vocab, where, rows, edits, entries);
}

} // namespace troupe::cuda
