#pragma once
#include "model/batch.hpp"
#include "rollout/block_allocator.hpp"
#include "rollout/prefix_index.hpp"
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

namespace troupe {

/// A prompt and what its samples share.
struct scheduled_prompt {
  std::uint64_t age = 0;     // order of arrival; set by the scheduler
  std::int64_t expected = 0; // tokens of a sample, as far as known: longer ones start first, so that none is left at the end
  std::vector<std::int32_t> ids;
  std::int64_t unfinished = 1;    // samples that have not ended
  std::int64_t waiting = 0;       // of them, those that hold no blocks though the prompt was computed
  std::vector<std::int32_t> held; // blocks of the computed prompt, kept for the samples that wait
  std::uint64_t held_weights = 0; // what computed them, as in sequence
};

/// A prompt under computation (sample -1), or one of its samples: the unit that holds a block table.
struct sequence {
  std::shared_ptr<scheduled_prompt> prompt;
  std::int64_t sample_index = -1;
  std::vector<std::int32_t> output_ids;
  std::vector<std::int32_t> blocks; // of positions 0 .. size() - 1
  std::int32_t cached = 0;          // positions whose keys and values are computed
  std::int32_t indexed = 0;         // blocks that the prefix index knows, from the first
  prefix_index::chain chain = 0;    // of those
  std::uint64_t weights = 0;        // the scheduler's count of changes when the first block was computed
  std::vector<std::int32_t> draft;  // of this pass: tokens that run after the last one as if they were drawn; not in size() or cached
  std::int32_t size() const { return std::int32_t(prompt->ids.size() + output_ids.size()); }
  std::int32_t token(std::int32_t position) const;
  std::array<std::int32_t, kv_block_tokens> tokens_of(std::int32_t block) const; // a full one
};

/// What to run next: first the copies, then the batch; `ends` are the sequences whose next token its logits give, one with a
/// draft again for every token of it.
struct scheduled_pass {
  std::vector<std::pair<std::int32_t, std::int32_t>> copies; // blocks, from -> to, in order
  token_batch batch;
  std::vector<sequence*> ends;
  std::vector<std::int32_t> logit_rows; // [ends], ascending
};

/// Proposes at most `most` tokens to follow a sample's.
using draft_source = std::function<std::vector<std::int32_t>(const sequence& s, std::int64_t most)>;

/// Decides which rows run: sequences that continue first, then chunks of prompts, those expected to be longest and then the
/// oldest first. When blocks run out the last gives its own back and is computed again later. Full blocks that were computed are found
/// again by their tokens, whoever asks, while the weights stay. Knows no model; one thread.
class scheduler {
public:
  scheduler(std::int32_t n_blocks, std::int64_t max_num_seqs, std::int64_t max_batch_tokens);
  ~scheduler();
  void add_prompt(std::shared_ptr<scheduled_prompt> prompt);
  /// Its prompt is computed: the sequence ends, and the blocks are kept for its samples.
  void prompt_done(sequence& s);
  /// A sample with its first token; it waits for a place.
  void add_sample(std::unique_ptr<sequence> s);
  /// The sample ended or is given up; also one that was never added (`s` null).
  void finish_sample(scheduled_prompt& prompt, sequence* s);
  /// Gives up a prompt and all its sequences.
  void remove(scheduled_prompt& prompt);
  /// The next pass, which must have run when another member is called; valid until next() is called again. Samples that
  /// continue are given drafts where rows and free blocks are left.
  const scheduled_pass& next(const draft_source& draft = {});
  std::int64_t n_running() const { return std::int64_t(running_.size()); }
  /// Keys and values of before may not be found any more; those of sequences under way stay theirs.
  void weights_changed();
  /// Every sequence gives its blocks back and is computed again. All blocks are free then, and none is known.
  void drop_cache();
  bool idle() const { return waiting_.empty() && running_.empty(); }
  std::int64_t preemptions() const { return preemptions_; }
  std::int64_t reused_prompt_tokens() const { return reused_prompt_tokens_; }
  const block_allocator& blocks() const { return blocks_; }

private:
  using place = std::tuple<std::int64_t, std::uint64_t, std::int64_t>; // -expected, age, sample: the order of service
  static place place_of(const scheduled_prompt& p, std::int64_t sample) { return {-p.expected, p.age, sample}; }
  using sequences = std::map<place, std::unique_ptr<sequence>>;
  struct known_blocks {
    std::vector<std::int32_t> blocks;
    prefix_index::chain end = 0;
  };
  struct prompt_blocks {
    const std::vector<std::int32_t>* table = nullptr; // null: the prompt is not computed
    std::uint64_t weights = 0;
  };
  bool grow(sequence& s);
  std::int32_t allocate();
  std::int32_t allocate_for(const place& who);
  bool drop_a_prompt();
  void suspend(sequences::iterator last);
  void preempt_youngest();
  void index(sequence& s);
  prompt_blocks computed_prompt(const sequence& s) const;
  known_blocks find_known(const sequence& s) const;
  bool under_computation(const sequence& s, const known_blocks& known) const;
  bool has_place(const sequence& s) const;
  bool has_blocks(const sequence& s, const known_blocks& known) const;
  void admit(scheduled_pass& pass);
  void attach(sequence& s, const known_blocks& known, scheduled_pass& pass);
  void attach_tail(sequence& s, scheduled_pass& pass);
  void clear_pass();
  void append(sequence& s, std::int32_t rows);
  void append_draft(sequence& s, std::vector<std::int32_t> draft);
  void append_segment(const sequence& s, std::int32_t position, std::int32_t rows);
  void append_rows(const draft_source& draft);

  block_allocator blocks_;
  prefix_index prefixes_;
  std::int64_t max_num_seqs_, max_batch_tokens_;
  std::uint64_t arrivals_ = 0, weights_ = 0;
  sequences waiting_, running_;
  std::map<std::uint64_t, std::shared_ptr<scheduled_prompt>> prompts_; // all that are not finished, by age
  std::int64_t committed_ = 0;                                         // unfinished samples of the prompts that were admitted
  std::int64_t waiting_samples_ = 0;                                   // of all computed prompts
  std::int64_t preemptions_ = 0, reused_prompt_tokens_ = 0;
  scheduled_pass pass_;
  std::vector<sequence*> chunks_;                // of the pass under construction
  std::vector<std::vector<std::int32_t>> spare_; // block tables of earlier passes: their memory
};

/// Blocks that hold so many tokens.
constexpr std::int32_t blocks_for(std::int64_t tokens) { return std::int32_t((tokens + kv_block_tokens - 1) / kv_block_tokens); }

} // namespace troupe
