#pragma once
#include "experience/trajectory.hpp"
#include "model/batch.hpp"
#include "rollout/block_allocator.hpp"
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace troupe {

/// A prompt and what its samples share.
struct scheduled_prompt {
  std::uint64_t age = 0; // order of arrival; set by the scheduler
  std::vector<std::int32_t> ids;
  std::int64_t unfinished = 1;    // samples that have not ended
  std::int64_t waiting = 0;       // of them, those that hold no blocks though the prompt was computed
  std::vector<std::int32_t> held; // blocks of the computed prompt, kept for the samples that wait
};

/// A prompt under computation (sample -1), or one of its samples: the unit that holds a block table.
struct sequence {
  std::shared_ptr<scheduled_prompt> prompt;
  std::int64_t sample_index = -1;
  std::vector<std::int32_t> output_ids;
  std::vector<std::int32_t> blocks; // of positions 0 .. size() - 1
  std::int32_t cached = 0;          // positions whose keys and values are computed
  std::int32_t size() const { return std::int32_t(prompt->ids.size() + output_ids.size()); }
  std::int32_t token(std::int32_t position) const;
};

/// What to run next: first the copies, then the batch; `ends` are the sequences whose next token its logits give.
struct scheduled_pass {
  std::vector<std::pair<std::int32_t, std::int32_t>> copies; // blocks, from -> to, in order
  token_batch batch;
  std::vector<sequence*> ends;
  std::vector<std::int32_t> logit_rows; // [ends], ascending
};

/// Decides which rows run: sequences that continue first, then chunks of prompts, oldest first. When blocks run out the
/// youngest sequence gives its own back and is computed again later. Knows no model; one thread.
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
  scheduled_pass next();
  bool idle() const { return waiting_.empty() && running_.empty(); }
  std::int64_t preemptions() const { return preemptions_; }
  const block_allocator& blocks() const { return blocks_; }

private:
  using place = std::pair<std::uint64_t, std::int64_t>; // age, sample: the order of service
  using sequences = std::map<place, std::unique_ptr<sequence>>;
  bool grow(sequence& s);
  std::int32_t allocate_for(const place& who);
  bool drop_a_prompt();
  void preempt_youngest();
  bool admissible(const sequence& s) const;
  void admit(scheduled_pass& pass);
  void attach(sequence& s, scheduled_pass& pass);
  const sequence* computed_sibling(const sequence& s) const;
  void append(sequence& s, std::int32_t rows, scheduled_pass& pass) const;

  block_allocator blocks_;
  std::int64_t max_num_seqs_, max_batch_tokens_;
  std::uint64_t arrivals_ = 0;
  sequences waiting_, running_;
  std::map<std::uint64_t, std::shared_ptr<scheduled_prompt>> prompts_; // all that are not finished, by age
  std::int64_t committed_ = 0;                                         // unfinished samples of the prompts that were admitted
  std::int64_t waiting_samples_ = 0;                                   // of all computed prompts
  std::int64_t preemptions_ = 0;
};

/// Blocks that hold so many tokens.
constexpr std::int32_t blocks_for(std::int64_t tokens) { return std::int32_t((tokens + kv_block_tokens - 1) / kv_block_tokens); }

} // namespace troupe
