#include "model/batch.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <numeric>
#include <utility>

namespace troupe {

namespace {

std::int32_t blocks_for(std::int64_t tokens) { return std::int32_t((tokens + kv_block_tokens - 1) / kv_block_tokens); }

// Appends rows for ids[from, end) at those positions as a segment whose block table is `blocks`.
std::int32_t append_rows(token_batch& tokens, const std::vector<std::int32_t>& ids, std::int32_t position,
                         std::vector<std::int32_t> blocks) {
  const auto row = std::int32_t(tokens.ids.size());
  tokens.ids.insert(tokens.ids.end(), ids.begin(), ids.end());
  for (std::size_t i = 0; i < ids.size(); ++i)
    tokens.positions.push_back(position + std::int32_t(i));
  tokens.segments.push_back({row, row + std::int32_t(ids.size()), position, std::move(blocks)});
  return row;
}

} // namespace

void batch_builder::add_group(const std::vector<std::int32_t>& prompt, const std::vector<std::vector<std::int32_t>>& responses) {
  if (prompt.empty())
    throw error{errc::bad_shape, "batch_builder: a prompt without tokens has nothing to predict from"};
  auto& tokens = batch_.tokens;
  const auto length = std::int32_t(prompt.size());
  std::vector<std::int32_t> prompt_blocks;
  for (std::int32_t b = 0; b < blocks_for(length); ++b)
    prompt_blocks.push_back(tokens.n_blocks++);
  const std::int32_t prompt_row = append_rows(tokens, prompt, 0, prompt_blocks);
  const std::int32_t full = length / kv_block_tokens, tail = full * kv_block_tokens;
  for (const auto& response : responses) {
    if (response.empty())
      continue;
    // The last response token predicts nothing, so it has no row.
    const std::vector<std::int32_t> rows(response.begin(), response.end() - 1);
    std::int32_t first = 0;
    if (!rows.empty()) {
      std::vector<std::int32_t> blocks(prompt_blocks.begin(), prompt_blocks.begin() + full);
      while (std::int32_t(blocks.size()) < blocks_for(std::int64_t(length) + std::int64_t(rows.size())))
        blocks.push_back(tokens.n_blocks++);
      for (std::int32_t p = tail; p < length; ++p)
        tokens.copies.push_back({prompt_row + p, blocks[std::size_t(full)], p - tail});
      first = append_rows(tokens, rows, length, std::move(blocks));
    }
    for (std::size_t i = 0; i < response.size(); ++i) {
      batch_.target_rows.push_back(i == 0 ? prompt_row + length - 1 : first + std::int32_t(i) - 1);
      batch_.targets.push_back(response[i]);
    }
  }
}

void batch_builder::add_sequence(const std::vector<std::int32_t>& ids, std::int32_t from) {
  if (from < 1 || from > std::int32_t(ids.size()))
    throw error{errc::bad_shape, "batch_builder: from " + std::to_string(from) + " is outside 1.." + std::to_string(ids.size())};
  std::vector<std::int32_t> positions(ids.size() - std::size_t(from));
  std::iota(positions.begin(), positions.end(), from);
  add_sequence(ids, positions);
}

void batch_builder::add_sequence(const std::vector<std::int32_t>& ids, const std::vector<std::int32_t>& target_positions) {
  if (target_positions.empty())
    return;
  for (std::size_t i = 0; i < target_positions.size(); ++i)
    if (target_positions[i] < (i == 0 ? 1 : target_positions[i - 1] + 1) || target_positions[i] >= std::int32_t(ids.size()))
      throw error{errc::bad_shape, "batch_builder: target " + std::to_string(i) + " at position " + std::to_string(target_positions[i]) +
                                       ": positions ascend from 1 to " + std::to_string(std::int64_t(ids.size()) - 1)};
  auto& tokens = batch_.tokens;
  const std::vector<std::int32_t> rows(ids.begin(), ids.end() - 1);
  std::vector<std::int32_t> blocks;
  for (std::int32_t b = 0; b < blocks_for(std::int64_t(rows.size())); ++b)
    blocks.push_back(tokens.n_blocks++);
  const std::int32_t row = append_rows(tokens, rows, 0, std::move(blocks));
  for (const auto position : target_positions) {
    batch_.target_rows.push_back(row + position - 1);
    batch_.targets.push_back(ids[std::size_t(position)]);
  }
}

namespace {

// Segments [first, last) of the whole; their rows are consecutive, and so are their sequences' own blocks.
batch_part part_of(const packed_batch& whole, std::size_t first, std::size_t last) {
  batch_part part;
  const token_batch& from = whole.tokens;
  token_batch& to = part.batch.tokens;
  const std::int32_t row0 = from.segments[first].row_begin, row1 = from.segments[last - 1].row_end;
  to.ids.assign(from.ids.begin() + row0, from.ids.begin() + row1);
  to.positions.assign(from.positions.begin() + row0, from.positions.begin() + row1);
  const auto width = std::ptrdiff_t(from.embeds.size() / from.ids.size());
  to.embeds.assign(from.embeds.begin() + row0 * width, from.embeds.begin() + row1 * width);
  std::vector<std::int32_t> block_of(std::size_t(from.n_blocks), -1);
  const auto renumbered = [&](std::int32_t block) {
    auto& number = block_of[std::size_t(block)];
    return number >= 0 ? number : number = to.n_blocks++;
  };
  for (std::size_t s = first; s < last; ++s) {
    segment moved = from.segments[s];
    moved.row_begin -= row0;
    moved.row_end -= row0;
    for (auto& block : moved.blocks)
      block = renumbered(block);
    to.segments.push_back(std::move(moved));
  }
  for (const kv_copy& c : from.copies)
    if (c.row >= row0 && c.row < row1)
      to.copies.push_back({c.row - row0, renumbered(c.block), c.slot});
  for (std::size_t i = 0; i < whole.targets.size(); ++i)
    if (whole.target_rows[i] >= row0 && whole.target_rows[i] < row1) {
      part.batch.target_rows.push_back(whole.target_rows[i] - row0);
      part.batch.targets.push_back(whole.targets[i]);
      part.targets.push_back(std::int32_t(i));
    }
  return part;
}

} // namespace

std::vector<batch_part> cut_batch(const packed_batch& whole, int parts) {
  const auto& segments = whole.tokens.segments;
  const auto total = std::int64_t(whole.tokens.ids.size());
  std::vector<std::size_t> begins; // of the parts
  std::int64_t current = -1;
  for (std::size_t s = 0; s < segments.size();) {
    std::size_t end = s + 1;
    while (end < segments.size() && segments[end].position > 0)
      ++end;
    // The part in which the middle of the prompt's rows falls.
    const std::int64_t of = (std::int64_t(segments[s].row_begin) + segments[end - 1].row_end) * parts / (2 * total);
    if (of > current) {
      begins.push_back(s);
      current = of;
    }
    s = end;
  }
  begins.push_back(segments.size());
  std::vector<batch_part> cut;
  for (std::size_t i = 0; i + 1 < begins.size(); ++i)
    cut.push_back(part_of(whole, begins[i], begins[i + 1]));
  return cut;
}

packed_batch batch_builder::take() { return std::exchange(batch_, {}); }

} // namespace troupe
