#pragma once
#include <cstdint>
#include <vector>

namespace troupe {

/// Tokens of a key/value block. The exact attention adds values block by block (docs/numerics.md).
inline constexpr std::int32_t kv_block_tokens = 32;

/// Rows of a pass that continue one sequence: consecutive rows are consecutive positions.
struct segment {
  std::int32_t row_begin = 0, row_end = 0; // rows of the pass
  std::int32_t position = 0;               // of row_begin in its sequence
  std::vector<std::int32_t> blocks;        // block ids that hold positions 0 .. position + rows - 1, in order
};

/// A row's keys and values written to a second place as well: the last, partly filled block of a prompt that several
/// samples of the same pass continue.
struct kv_copy {
  std::int32_t row = 0, block = 0, slot = 0;
};

/// One pass over packed tokens, no padding. Row r of a segment writes its keys and values to
/// blocks[p / 32], slot p % 32 (p its position), and attends to positions 0 .. p of its segment's blocks.
struct token_batch {
  std::vector<std::int32_t> ids;       // [n_tokens]
  std::vector<std::int32_t> positions; // [n_tokens]
  std::vector<segment> segments;       // cover all rows, in order, without overlap
  std::vector<kv_copy> copies;
  std::int32_t n_blocks = 0; // block ids are below this
  std::vector<float> embeds; // [n_tokens, width] in place of the ids' embeddings; empty: the ids count
};

/// A training or scoring pass: `targets[i]` is predicted from the hidden state of row `target_rows[i]`.
struct packed_batch {
  token_batch tokens;
  std::vector<std::int32_t> target_rows; // [n_targets]; a prompt's last row serves every response
  std::vector<std::int32_t> targets;     // [n_targets] token ids
};

/// Some of a batch's prompts, with what continues them.
struct batch_part {
  packed_batch batch;
  std::vector<std::int32_t> targets; // which of the whole batch's targets these are
};
/// Cuts a batch between prompts into at most `parts` of about as many tokens each, in order, none empty.
std::vector<batch_part> cut_batch(const packed_batch& whole, int parts);

/// Builds packed batches: a prompt once, then the responses that continue it.
class batch_builder {
public:
  /// Adds a prompt and the responses that share it. Targets: every response token (its row's predecessor predicts it).
  /// `prompt` must not be empty. Responses may be empty. Order of targets: response by response, position by position.
  void add_group(const std::vector<std::int32_t>& prompt, const std::vector<std::vector<std::int32_t>>& responses);
  /// Adds one sequence whose tokens at positions from .. end-1 are targets (1 <= from <= size).
  void add_sequence(const std::vector<std::int32_t>& ids, std::int32_t from);
  /// The same with the positions of the targets given, ascending, each from 1 to size - 1.
  void add_sequence(const std::vector<std::int32_t>& ids, const std::vector<std::int32_t>& target_positions);
  std::int64_t n_tokens() const { return std::int64_t(batch_.tokens.ids.size()); }
  packed_batch take(); // and starts anew

private:
  packed_batch batch_;
};

} // namespace troupe
