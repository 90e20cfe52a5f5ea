#include "rollout/scheduler.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <string>

namespace troupe {

std::int32_t sequence::token(std::int32_t position) const {
  const auto p = std::size_t(position), n = prompt->ids.size();
  return p < n ? prompt->ids[p] : output_ids[p - n];
}

scheduler::scheduler(std::int32_t n_blocks, std::int64_t max_num_seqs, std::int64_t max_batch_tokens)
    : blocks_(n_blocks), max_num_seqs_(max_num_seqs), max_batch_tokens_(max_batch_tokens) {}

scheduler::~scheduler() = default;

void scheduler::add_prompt(std::shared_ptr<scheduled_prompt> prompt) {
  prompt->age = arrivals_++;
  prompts_[prompt->age] = prompt;
  auto s = std::make_unique<sequence>();
  s->prompt = std::move(prompt);
  const place at{s->prompt->age, s->sample_index};
  waiting_.emplace(at, std::move(s));
}

void scheduler::prompt_done(sequence& s) {
  s.prompt->held = std::move(s.blocks);
  running_.erase(place{s.prompt->age, s.sample_index});
}

void scheduler::add_sample(std::unique_ptr<sequence> s) {
  ++s->prompt->waiting;
  ++waiting_samples_;
  const place at{s->prompt->age, s->sample_index};
  waiting_.emplace(at, std::move(s));
}

void scheduler::finish_sample(scheduled_prompt& prompt, sequence* s) {
  if (s) {
    const place at{prompt.age, s->sample_index};
    const auto was_waiting = std::int64_t(waiting_.count(at));
    prompt.waiting -= was_waiting;
    waiting_samples_ -= was_waiting;
    blocks_.release(s->blocks);
    waiting_.erase(at);
    running_.erase(at);
  }
  --committed_;
  if (--prompt.unfinished == 0) {
    blocks_.release(prompt.held);
    prompts_.erase(prompt.age);
  }
}

void scheduler::remove(scheduled_prompt& prompt) {
  const place first{prompt.age, -1}, last{prompt.age + 1, -1};
  if (waiting_.count(first) == 0)
    committed_ -= prompt.unfinished;
  for (auto* where : {&waiting_, &running_}) {
    const auto begin = where->lower_bound(first), end = where->lower_bound(last);
    for (auto it = begin; it != end; ++it)
      blocks_.release(it->second->blocks);
    where->erase(begin, end);
  }
  waiting_samples_ -= prompt.waiting;
  blocks_.release(prompt.held);
  prompts_.erase(prompt.age);
}

// Drops the youngest kept prompt whose end frees a block; its samples will compute it again.
bool scheduler::drop_a_prompt() {
  const auto before = blocks_.n_free();
  for (auto it = prompts_.rbegin(); it != prompts_.rend() && blocks_.n_free() == before; ++it)
    blocks_.release(it->second->held);
  return blocks_.n_free() > before;
}

void scheduler::preempt_youngest() {
  auto last = std::prev(running_.end());
  sequence& s = *last->second;
  blocks_.release(s.blocks);
  s.cached = 0;
  if (s.sample_index < 0) {
    committed_ -= s.prompt->unfinished;
  } else {
    ++s.prompt->waiting;
    ++waiting_samples_;
  }
  waiting_.insert(running_.extract(last));
  ++preemptions_;
}

// A block, at the expense of kept prompts and of sequences younger than `who`; -1 when `who` is the youngest.
std::int32_t scheduler::allocate_for(const place& who) {
  for (;;) {
    if (const auto b = blocks_.allocate(); b >= 0)
      return b;
    if (drop_a_prompt())
      continue;
    if (running_.empty() || running_.rbegin()->first <= who)
      return -1;
    preempt_youngest();
  }
}

// Blocks for all its tokens; false: there are none, and the sequence was preempted.
bool scheduler::grow(sequence& s) {
  const place who{s.prompt->age, s.sample_index};
  while (std::int32_t(s.blocks.size()) < blocks_for(s.size())) {
    const auto b = allocate_for(who);
    if (b < 0) {
      preempt_youngest();
      return false;
    }
    s.blocks.push_back(b);
  }
  return true;
}

const sequence* scheduler::computed_sibling(const sequence& s) const {
  for (auto it = running_.lower_bound(place{s.prompt->age, 0}); it != running_.end() && it->second->prompt == s.prompt; ++it)
    if (it->second->cached >= std::int32_t(s.prompt->ids.size()))
      return it->second.get();
  return nullptr;
}

// Whether the oldest waiting sequence may start: a place for it (all samples of a prompt), and blocks for it, for the samples
// that wait already, and a few for those that run.
bool scheduler::admissible(const sequence& s) const {
  if (running_.empty())
    return true;
  const bool is_prompt = s.sample_index < 0;
  if (is_prompt ? committed_ + s.prompt->unfinished > max_num_seqs_ : std::int64_t(running_.size()) >= max_num_seqs_)
    return false;
  std::int64_t need = blocks_for(s.size()) + std::max<std::int64_t>(1, blocks_.n_blocks() / 100);
  if (is_prompt) {
    need += s.prompt->unfinished + waiting_samples_;
  } else if (!s.prompt->held.empty() || computed_sibling(s)) {
    need -= std::int64_t(s.prompt->ids.size()) / kv_block_tokens;
  }
  return blocks_.n_free() >= need;
}

// Gives a sequence its blocks: the prompt's full ones are shared, a partly filled last one is copied.
void scheduler::attach(sequence& s, scheduled_pass& pass) {
  auto& prompt = *s.prompt;
  const auto length = std::int32_t(prompt.ids.size()), full = length / kv_block_tokens;
  if (s.sample_index >= 0) {
    --prompt.waiting;
    --waiting_samples_;
    const auto* sibling = computed_sibling(s);
    const auto& from = !prompt.held.empty() || !sibling ? prompt.held : sibling->blocks;
    if (!from.empty()) {
      s.blocks.assign(from.begin(), from.begin() + full);
      for (const auto b : s.blocks)
        blocks_.share(b);
      s.cached = full * kv_block_tokens;
    }
    if (!prompt.held.empty() && length % kv_block_tokens != 0) {
      const auto tail = prompt.held.back();
      if (prompt.waiting == 0)
        blocks_.release(prompt.held); // the last to start: the very block may come back
      // The old content stays until the pass runs, whoever gets the block.
      s.blocks.push_back(allocate_for({prompt.age, s.sample_index}));
      if (s.blocks.back() != tail)
        pass.copies.emplace_back(tail, s.blocks.back());
      s.cached = length;
    }
    if (prompt.waiting == 0)
      blocks_.release(prompt.held);
  } else {
    committed_ += prompt.unfinished;
  }
}

void scheduler::admit(scheduled_pass& pass) {
  while (!waiting_.empty() && admissible(*waiting_.begin()->second)) {
    const auto it = running_.insert(waiting_.extract(waiting_.begin())).position;
    attach(*it->second, pass);
    if (!grow(*it->second))
      throw error{errc::failed, "scheduler: a cache of " + std::to_string(blocks_.n_blocks()) + " blocks cannot hold a sequence of " +
                                    std::to_string(waiting_.begin()->second->size()) + " tokens"};
  }
}

void scheduler::append(sequence& s, std::int32_t rows, scheduled_pass& pass) const {
  auto& batch = pass.batch;
  const auto begin = std::int32_t(batch.ids.size());
  for (std::int32_t i = 0; i < rows; ++i) {
    batch.ids.push_back(s.token(s.cached + i));
    batch.positions.push_back(s.cached + i);
  }
  segment seg{begin, begin + rows, s.cached, {}};
  seg.blocks.assign(s.blocks.begin(), s.blocks.begin() + blocks_for(s.cached + rows));
  batch.segments.push_back(std::move(seg));
  s.cached += rows;
  if (s.cached == s.size()) {
    pass.ends.push_back(&s);
    pass.logit_rows.push_back(begin + rows - 1);
  }
}

scheduled_pass scheduler::next() {
  scheduled_pass pass;
  pass.batch.n_blocks = blocks_.n_blocks();
  // Preemption takes from the end of the order, so what was passed stays.
  for (auto it = running_.begin(); it != running_.end();) {
    const auto at = it->first;
    grow(*it->second);
    it = running_.upper_bound(at);
  }
  admit(pass);
  std::vector<sequence*> chunks;
  std::int64_t budget = max_batch_tokens_;
  for (auto& [at, s] : running_) {
    if (s->size() - s->cached > 1) {
      chunks.push_back(s.get());
    } else if (budget > 0) {
      append(*s, 1, pass);
      --budget;
    }
  }
  for (auto* s : chunks) {
    const auto rows = std::min<std::int64_t>(budget, s->size() - s->cached);
    if (rows > 0)
      append(*s, std::int32_t(rows), pass);
    budget -= rows;
  }
  return pass;
}

} // namespace troupe
