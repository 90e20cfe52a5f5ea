#include "model/cuda/device_batch.hpp"
#include <algorithm>

namespace troupe::cuda {

namespace {

/// The arrays of a batch, one behind the other.
struct packer {
  std::vector<std::int32_t> all;
  std::size_t put(const std::vector<std::int32_t>& values) {
    const std::size_t at = all.size();
    all.insert(all.end(), values.begin(), values.end());
    all.resize((all.size() + 3) / 4 * 4);
    return at;
  }
};

std::vector<std::int32_t> padded(std::vector<std::int32_t> values, std::size_t size, std::int32_t with) {
  values.resize(std::max(size, values.size()), with);
  return values;
}

std::int32_t slot(const segment& s, std::int32_t position) {
  return s.blocks[std::size_t(position / kv_block_tokens)] * kv_block_tokens + position % kv_block_tokens;
}

} // namespace

device_batch batch_upload::put(const token_batch& batch, std::span<const std::int32_t> head_rows, const pass_bounds& bounds,
                               const id_range& own, stream where) {
  device_batch d;
  const auto n = std::max<std::size_t>(batch.ids.size(), std::size_t(bounds.rows));
  const auto n_segments = bounds.rows > 0 ? std::size_t(bounds.rows) : batch.segments.size();
  std::vector<std::int32_t> slots, row_begin, n_rows, n_keys, copy_rows, copy_slots;
  std::int32_t max_keys = bounds.max_keys, max_rows = 1;
  bool single = true;
  for (const auto& s : batch.segments) {
    const std::int32_t rows = s.row_end - s.row_begin;
    row_begin.push_back(s.row_begin);
    n_rows.push_back(rows);
    n_keys.push_back(s.position + rows);
    max_rows = std::max(max_rows, rows);
    max_keys = std::max(max_keys, s.position + rows);
    single = single && rows == 1;
    d.plan.n_single += single;
    for (std::int32_t r = 0; r < rows; ++r)
      slots.push_back(slot(s, s.position + r));
  }
  for (auto i = std::int32_t(row_begin.size()); std::size_t(i) < n_segments; ++i) { // padding
    row_begin.push_back(i);
    n_rows.push_back(1);
    n_keys.push_back(0);
    d.plan.n_single += single;
  }
  for (const auto& c : batch.copies) {
    copy_rows.push_back(c.row);
    copy_slots.push_back(c.block * kv_block_tokens + c.slot);
  }
  const std::int32_t max_blocks = (max_keys + kv_block_tokens - 1) / kv_block_tokens;
  std::vector<std::int32_t> blocks(n_segments * std::size_t(max_blocks));
  for (std::size_t s = 0; s < batch.segments.size(); ++s)
    std::copy(batch.segments[s].blocks.begin(), batch.segments[s].blocks.begin() + (n_keys[s] + kv_block_tokens - 1) / kv_block_tokens,
              blocks.begin() + std::ptrdiff_t(s) * max_blocks);
  std::vector<std::int32_t> own_ids = batch.ids;
  for (auto& id : own_ids)
    id = id >= own.begin && id < own.end ? std::int32_t(id - own.begin) : -1;
  packer p;
  const auto ids = p.put(padded(std::move(own_ids), n, 0)), positions = p.put(padded(batch.positions, n, 0)),
             at = p.put(padded(slots, n, -1));
  const auto begins = p.put(row_begin), counts = p.put(n_rows), keys = p.put(n_keys), table = p.put(blocks);
  const auto from = p.put(copy_rows), to = p.put(copy_slots);
  const auto rows = p.put(padded({head_rows.begin(), head_rows.end()}, std::size_t(bounds.rows), 0));
  const std::size_t bytes = p.all.size() * sizeof(std::int32_t);
  moved_ = device_.size() < bytes;
  if (moved_) {
    host_ = pinned_buffer(2 * bytes);
    device_ = device_buffer(2 * bytes);
  }
  std::copy(p.all.begin(), p.all.end(), static_cast<std::int32_t*>(host_.data()));
  copy_async(device_.data(), host_.data(), bytes, where);
  const auto* base = static_cast<const std::int32_t*>(device_.data());
  d.n = std::int64_t(n);
  d.ids = base + ids, d.positions = base + positions, d.slots = base + at;
  d.plan.n_segments = int(n_segments), d.plan.n_tokens = int(n);
  d.plan.row_begin = base + begins, d.plan.n_rows = base + counts, d.plan.n_keys = base + keys, d.plan.blocks = base + table;
  d.plan.max_blocks = max_blocks, d.plan.max_rows = max_rows, d.plan.max_keys = max_keys;
  d.n_copies = std::int64_t(copy_rows.size()), d.copy_rows = base + from, d.copy_slots = base + to;
  d.n_rows = bounds.rows > 0 ? bounds.rows : std::int64_t(head_rows.size());
  d.rows = base + rows;
  return d;
}

} // namespace troupe::cuda
