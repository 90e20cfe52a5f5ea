#include "model/cuda/device_draws.hpp"
#include <algorithm>
#include <map>
#include <vector>

namespace troupe::cuda {

static_assert(not_finite == troupe::not_finite && none_left == troupe::none_left);

namespace {

// Lists of edits one after the other; ids that several draws share, once.
struct edit_lists {
  std::vector<row_edits> edits;
  std::vector<cuda::logit_edit> entries;
  std::map<const std::int32_t*, std::int32_t> allowed; // first id's address, place

  std::int32_t put(std::span<const troupe::logit_edit> list) {
    for (const auto& e : list)
      entries.push_back({e.id, e.value});
    return std::int32_t(list.size());
  }
  std::int32_t put(std::span<const std::int32_t> ids) {
    for (const auto id : ids)
      entries.push_back({id, 0.0f});
    return std::int32_t(ids.size());
  }
  void put(const logit_edits& e) {
    row_edits r;
    r.n_allowed = std::int32_t(e.allowed.size());
    if (const auto [found, first] = allowed.try_emplace(e.allowed.data(), std::int32_t(entries.size())); first)
      r.allowed_begin = found->second, put(e.allowed);
    else
      r.allowed_begin = found->second;
    r.begin = std::int32_t(entries.size());
    r.n_added = put(e.added);
    r.n_repeated = put(e.repeated);
    r.n_penalised = put(e.penalised);
    r.n_masked = put(e.masked);
    r.repetition = e.repetition, r.presence = e.presence;
    edits.push_back(r);
  }
};

} // namespace

void device_draws::reserve(mirror& m, std::size_t bytes) {
  if (m.device.size() >= bytes)
    return;
  m.device = device_buffer(2 * bytes);
  m.host = pinned_buffer(2 * bytes);
  moved_ = true;
}

void device_draws::upload_edits(std::span<const token_draw> draws, stream where) {
  edit_lists lists;
  for (const auto& d : draws)
    if (d.edits)
      lists.put(*d.edits);
  const std::size_t edits = lists.edits.size() * sizeof(row_edits), entries = lists.entries.size() * sizeof(logit_edit);
  reserve(edits_, std::max(edits, std::size_t{1}));
  reserve(entries_, std::max(entries, std::size_t{1}));
  std::copy(lists.edits.begin(), lists.edits.end(), edits_.on_host<row_edits>());
  std::copy(lists.entries.begin(), lists.entries.end(), entries_.on_host<cuda::logit_edit>());
  copy_async(edits_.device.data(), edits_.host.data(), edits, where);
  copy_async(entries_.device.data(), entries_.host.data(), entries, where);
}

draw_arrays device_draws::put(std::span<const token_draw> draws, std::int64_t places, stream where) {
  moved_ = false;
  const auto n = std::size_t(places);
  reserve(draws_, std::max<std::size_t>(n, 1) * sizeof(row_draw));
  reserve(drawn_, std::max<std::size_t>(n, 1) * sizeof(cuda::drawn_token));
  draw_arrays a;
  std::int32_t n_edits = 0;
  n_top_ = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const auto d = i < draws.size() ? draws[i] : token_draw{.temperature = 0};
    draws_.on_host<row_draw>()[i] = {.row = d.row,
                                     .edits = d.edits ? n_edits++ : -1,
                                     .temperature = d.temperature,
                                     .u = d.u,
                                     .top_p = d.top_p,
                                     .min_p = d.min_p,
                                     .top_k = d.top_k,
                                     .logprob_temperature = d.logprob_temperature,
                                     .n_top = d.n_top,
                                     .top_begin = std::int32_t(n_top_)};
    n_top_ += std::size_t(d.n_top);
    a.truncated = a.truncated || d.top_k > 0 || d.top_p < 1 || d.min_p > 0;
  }
  copy_async(draws_.device.data(), draws_.host.data(), n * sizeof(row_draw), where);
  if (n_edits > 0)
    upload_edits(draws, where);
  if (n_top_ > 0)
    reserve(top_, n_top_ * sizeof(cuda::drawn_token));
  a.n = places;
  a.draws = draws_.on_device<row_draw>();
  a.edits = n_edits > 0 ? edits_.on_device<row_edits>() : nullptr;
  a.entries = entries_.on_device<cuda::logit_edit>();
  a.drawn = drawn_.on_device<cuda::drawn_token>();
  a.top = n_top_ > 0 ? top_.on_device<cuda::drawn_token>() : nullptr;
  return a;
}

void device_draws::fetch(std::size_t n_draws, stream where) {
  copy_async(drawn_.host.data(), drawn_.device.data(), n_draws * sizeof(cuda::drawn_token), where);
  copy_async(top_.host.data(), top_.device.data(), n_top_ * sizeof(cuda::drawn_token), where);
}

void device_draws::read(std::span<const token_draw> draws, troupe::drawn_token* drawn) const {
  const auto* from = top_.on_host<cuda::drawn_token>();
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const auto& d = drawn_.on_host<cuda::drawn_token>()[i];
    drawn[i] = {d.id, d.logprob};
    for (std::int32_t k = 0; k < draws[i].n_top; ++k, ++from)
      draws[i].top[k] = {from->id, from->logprob};
  }
}

} // namespace troupe::cuda
