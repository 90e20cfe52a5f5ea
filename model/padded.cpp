#include "model/padded.hpp"
#include "core/error.hpp"
#include "model/layout.hpp"
#include <algorithm>

namespace troupe {

namespace {

void check_size(const char* what, std::size_t found, std::int64_t expected) {
  if (std::int64_t(found) != expected)
    throw error{errc::bad_shape, std::string("padded input: ") + what + " has " + std::to_string(found) +
                                     " elements, rows and columns make it " + std::to_string(expected)};
}

void check(const padded_input& input, std::int64_t width) {
  if (input.rows < 1 || input.columns < 1)
    throw error{errc::bad_shape, "padded input: " + std::to_string(input.rows) + " rows of " + std::to_string(input.columns) + " columns"};
  if (input.ids.empty() == input.embeds.empty())
    throw error{errc::bad_shape, std::string("padded input: exactly one of input_ids and inputs_embeds must be given, found ") +
                                     (input.ids.empty() ? "neither" : "both")};
  const std::int64_t n = input.rows * input.columns;
  if (!input.ids.empty())
    check_size("input_ids", input.ids.size(), n);
  else
    check_size("inputs_embeds", input.embeds.size(), n * width);
  if (!input.attention_mask.empty())
    check_size("attention_mask", input.attention_mask.size(), n);
}

} // namespace

unpadded unpad(const padded_input& input, std::int64_t width) {
  check(input, width);
  unpadded u;
  token_batch& tokens = u.batch.tokens;
  for (std::int64_t r = 0; r < input.rows; ++r) {
    segment s;
    s.row_begin = std::int32_t(tokens.ids.size());
    for (std::int64_t place = r * input.columns; place < (r + 1) * input.columns; ++place) {
      if (!input.attention_mask.empty() && input.attention_mask[std::size_t(place)] == 0)
        continue;
      const auto row = std::int32_t(tokens.ids.size());
      tokens.ids.push_back(input.ids.empty() ? 0 : input.ids[std::size_t(place)]);
      tokens.positions.push_back(row - s.row_begin);
      if (!input.embeds.empty())
        tokens.embeds.insert(tokens.embeds.end(), input.embeds.begin() + place * width, input.embeds.begin() + (place + 1) * width);
      u.batch.target_rows.push_back(row);
      u.batch.targets.push_back(0);
      u.places.push_back(place);
    }
    s.row_end = std::int32_t(tokens.ids.size());
    u.last.push_back(s.row_end > s.row_begin ? s.row_end - 1 : -1);
    for (std::int32_t held = 0; held < s.row_end - s.row_begin; held += kv_block_tokens)
      s.blocks.push_back(tokens.n_blocks++);
    if (s.row_end > s.row_begin)
      tokens.segments.push_back(std::move(s));
  }
  return u;
}

std::vector<float> pad(const std::vector<float>& packed, const unpadded& where, const padded_input& shape, std::int64_t width) {
  std::vector<float> all(static_cast<std::size_t>(shape.rows * shape.columns * width));
  for (std::size_t i = 0; i < where.places.size(); ++i)
    std::copy_n(packed.begin() + std::ptrdiff_t(i) * width, width, all.begin() + where.places[i] * width);
  return all;
}

struct padded_model::padded_tape final : tape {
  std::unique_ptr<tape> packed;
  unpadded where;
  std::int64_t width = 0;
  bool scores = false; // one a row, at its last token
};

std::vector<float> padded_model::forward(const padded_input& input, std::unique_ptr<tape>* save) {
  const model_config& cfg = model_->config();
  auto t = std::make_unique<padded_tape>();
  t->where = unpad(input, cfg.layer.hidden);
  t->width = layout_of(cfg).back().out;
  t->scores = cfg.head == head_kind::reward;
  if (t->scores) { // the last tokens alone
    auto& batch = t->where.batch;
    batch.target_rows.clear();
    for (const auto row : t->where.last)
      if (row >= 0)
        batch.target_rows.push_back(row);
    batch.targets.assign(batch.target_rows.size(), 0);
  }
  std::vector<float> packed;
  if (!t->where.places.empty())
    packed = model_->outputs(t->where.batch, save ? &t->packed : nullptr);
  std::vector<float> all;
  if (t->scores) {
    auto next = packed.begin();
    for (const auto row : t->where.last)
      all.push_back(row >= 0 ? *next++ : 0.0f);
  } else {
    all = pad(packed, t->where, input, t->width);
  }
  if (save)
    *save = std::move(t);
  return all;
}

void padded_model::backward(tape& saved, const std::vector<float>& d_outputs) {
  auto& t = dynamic_cast<padded_tape&>(saved);
  if (!t.packed)
    return; // nothing but padding
  std::vector<float> packed;
  if (t.scores) {
    for (std::size_t r = 0; r < t.where.last.size(); ++r)
      if (t.where.last[r] >= 0)
        packed.push_back(d_outputs.at(r));
  } else {
    for (const auto place : t.where.places)
      packed.insert(packed.end(), d_outputs.begin() + place * t.width, d_outputs.begin() + (place + 1) * t.width);
  }
  model_->backward_outputs(*t.packed, packed);
}

} // namespace troupe
