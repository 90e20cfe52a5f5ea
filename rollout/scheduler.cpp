#include "rollout/scheduler.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <limits>
#include <string>

namespace troupe {

std::int32_t sequence::token(std::int32_t position) const {
  const auto p = std::size_t(position), n = prompt->ids.size();
  return p < n ? prompt->ids[p] : output_ids[p - n];
}

std::array<std::int32_t, kv_block_tokens> sequence::tokens_of(std::int32_t block) const {
  std::array<std::int32_t, kv_block_tokens> out;
  for (std::int32_t i = 0; i < kv_block_tokens; ++i)
    out[std::size_t(i)] = token(block * kv_block_tokens + i);
  return out;
}

scheduler::scheduler(std::int32_t n_blocks, std::int64_t max_num_seqs, std::int64_t max_batch_tokens)
    : blocks_(n_blocks), max_num_seqs_(max_num_seqs), max_batch_tokens_(max_batch_tokens) {}

scheduler::~scheduler() = default;

void scheduler::add_prompt(std::shared_ptr<scheduled_prompt> prompt) {
  prompt->age = arrivals_++;
  prompts_[prompt->age] = prompt;
  auto s = std::make_unique<sequence>();
  s->prompt = std::move(prompt);
  const place at = place_of(*s->prompt, s->sample_index);
  waiting_.emplace(at, std::move(s));
}

void scheduler::prompt_done(sequence& s) {
  index(s);
  s.prompt->held = std::move(s.blocks);
  s.prompt->held_weights = s.weights;
  running_.erase(place_of(*s.prompt, s.sample_index));
}

void scheduler::add_sample(std::unique_ptr<sequence> s) {
  ++s->prompt->waiting;
  ++waiting_samples_;
  const place at = place_of(*s->prompt, s->sample_index);
  waiting_.emplace(at, std::move(s));
}

void scheduler::finish_sample(scheduled_prompt& prompt, sequence* s) {
  if (s) {
    const place at = place_of(prompt, s->sample_index);
    const auto was_waiting = std::int64_t(waiting_.count(at));
    prompt.waiting -= was_waiting;
    waiting_samples_ -= was_waiting;
    index(*s);
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
  const place first = place_of(prompt, -1), last = place_of(prompt, std::numeric_limits<std::int64_t>::max());
  if (waiting_.count(first) == 0)
    committed_ -= prompt.unfinished;
  for (auto* where : {&waiting_, &running_}) {
    const auto begin = where->lower_bound(first), end = where->lower_bound(last);
    for (auto it = begin; it != end; ++it) {
      index(*it->second);
      blocks_.release(it->second->blocks);
    }
    where->erase(begin, end);
  }
  waiting_samples_ -= prompt.waiting;
  blocks_.release(prompt.held);
  prompts_.erase(prompt.age);
}

void scheduler::weights_changed() {
  ++weights_;
  prefixes_.clear();
  blocks_.forget();
}

void scheduler::drop_cache() {
  while (!running_.empty())
    suspend(std::prev(running_.end()));
  for (auto& [age, prompt] : prompts_)
    blocks_.release(prompt->held);
  weights_changed();
}

// Enters the full blocks that the passes so far computed. Of two equal ones the newer is given back.
void scheduler::index(sequence& s) {
  if (s.weights != weights_)
    return;
  for (; (s.indexed + 1) * kv_block_tokens <= s.cached; ++s.indexed) {
    auto& block = s.blocks[std::size_t(s.indexed)];
    const auto tokens = s.tokens_of(s.indexed);
    const auto known = prefixes_.find(s.chain, tokens);
    if (known.block < 0) {
      s.chain = prefixes_.add(s.chain, tokens, block);
      blocks_.keep(block);
      continue;
    }
    s.chain = known.end;
    blocks_.share(known.block);
    blocks_.release(block);
    block = known.block;
  }
}

// Drops the youngest kept prompt whose end frees a block; its samples will compute it again.
bool scheduler::drop_a_prompt() {
  const auto before = blocks_.n_free();
  for (auto it = prompts_.rbegin(); it != prompts_.rend() && blocks_.n_free() == before; ++it)
    blocks_.release(it->second->held);
  return blocks_.n_free() > before;
}

void scheduler::suspend(sequences::iterator last) {
  sequence& s = *last->second;
  blocks_.release(s.blocks);
  s.cached = s.indexed = 0;
  s.chain = 0;
  if (s.sample_index < 0) {
    committed_ -= s.prompt->unfinished;
  } else {
    ++s.prompt->waiting;
    ++waiting_samples_;
  }
  waiting_.insert(running_.extract(last));
}

void scheduler::preempt_youngest() {
  suspend(std::prev(running_.end()));
  ++preemptions_;
}

std::int32_t scheduler::allocate() {
  const auto b = blocks_.allocate();
  if (b >= 0)
    prefixes_.remove(b);
  return b;
}

// A block, at the expense of kept prompts and of sequences younger than `who`; -1 when `who` is the youngest.
std::int32_t scheduler::allocate_for(const place& who) {
  for (;;) {
    if (const auto b = allocate(); b >= 0)
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
  const place who = place_of(*s.prompt, s.sample_index);
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

scheduler::prompt_blocks scheduler::computed_prompt(const sequence& s) const {
  const auto& prompt = *s.prompt;
  if (!prompt.held.empty())
    return {&prompt.held, prompt.held_weights};
  for (auto it = running_.lower_bound(place_of(prompt, 0)); it != running_.end() && it->second->prompt == s.prompt; ++it)
    if (it->second->cached >= std::int32_t(prompt.ids.size()))
      return {&it->second->blocks, it->second->weights};
  return {};
}

// Blocks that hold the beginning of s, by the weights of now. The last row always runs: it gives the logits.
// A sample whose prompt was computed by older weights goes on with that.
scheduler::known_blocks scheduler::find_known(const sequence& s) const {
  known_blocks known;
  if (s.sample_index >= 0)
    if (const auto prompt = computed_prompt(s); prompt.table && prompt.weights != weights_)
      return known;
  const auto most = (s.size() - 1) / kv_block_tokens;
  while (std::int32_t(known.blocks.size()) < most) {
    const auto found = prefixes_.find(known.end, s.tokens_of(std::int32_t(known.blocks.size())));
    if (found.block < 0)
      break;
    known.blocks.push_back(found.block);
    known.end = found.end;
  }
  return known;
}

// Whether a sequence that runs is about to compute the block that s would begin with: then s waits for it.
bool scheduler::under_computation(const sequence& s, const known_blocks& known) const {
  const auto next = std::int32_t(known.blocks.size());
  if ((next + 1) * kv_block_tokens >= s.size())
    return false;
  for (const auto& [at, other] : running_)
    if (other->chain == known.end && other->indexed == next && other->weights == weights_ &&
        (next + 1) * kv_block_tokens <= other->size() && other->tokens_of(next) == s.tokens_of(next))
      return true;
  return false;
}

// Whether the number of sequences allows it: a prompt needs a place for all its samples.
bool scheduler::has_place(const sequence& s) const {
  if (running_.empty())
    return true;
  return s.sample_index < 0 ? committed_ + s.prompt->unfinished <= max_num_seqs_ : std::int64_t(running_.size()) < max_num_seqs_;
}

// Whether there are blocks for it, for the samples that wait already, and a few for those that run.
bool scheduler::has_blocks(const sequence& s, const known_blocks& known) const {
  if (running_.empty())
    return true;
  std::int64_t need = blocks_for(s.size()) + std::max<std::int64_t>(1, blocks_.n_blocks() / 100);
  if (s.sample_index < 0)
    need += s.prompt->unfinished + waiting_samples_;
  else if (known.blocks.empty() && computed_prompt(s).table)
    need -= std::int64_t(s.prompt->ids.size()) / kv_block_tokens;
  need -= std::count_if(known.blocks.begin(), known.blocks.end(), [this](std::int32_t b) { return blocks_.users(b) > 0; });
  return blocks_.n_free() >= need;
}

// A sample's own copy of its prompt's last, partly filled block.
void scheduler::attach_tail(sequence& s, scheduled_pass& pass) {
  auto& prompt = *s.prompt;
  const auto tail = prompt.held.back();
  if (prompt.waiting == 0)
    blocks_.release(prompt.held); // the last to start: the very block may come back
  // The old content stays until the pass runs, whoever gets the block.
  s.blocks.push_back(allocate_for(place_of(prompt, s.sample_index)));
  if (s.blocks.back() != tail)
    pass.copies.emplace_back(tail, s.blocks.back());
  s.cached = std::int32_t(prompt.ids.size());
}

// Gives a sequence the blocks that need not be computed.
void scheduler::attach(sequence& s, const known_blocks& known, scheduled_pass& pass) {
  auto& prompt = *s.prompt;
  const auto length = std::int32_t(prompt.ids.size()), full = length / kv_block_tokens;
  s.weights = weights_;
  for (const auto b : known.blocks)
    blocks_.share(b);
  s.blocks = known.blocks;
  s.indexed = std::int32_t(known.blocks.size());
  s.chain = known.end;
  if (s.sample_index < 0) {
    committed_ += prompt.unfinished;
    reused_prompt_tokens_ += s.indexed * kv_block_tokens;
  } else {
    --prompt.waiting;
    --waiting_samples_;
    if (const auto source = computed_prompt(s); source.table && source.weights != weights_) {
      s.blocks.assign(source.table->begin(), source.table->begin() + full);
      for (const auto b : s.blocks)
        blocks_.share(b);
      s.weights = source.weights;
    }
  }
  s.cached = std::int32_t(s.blocks.size()) * kv_block_tokens;
  if (s.sample_index >= 0 && s.cached == full * kv_block_tokens && s.cached < length && !prompt.held.empty())
    attach_tail(s, pass);
  if (s.sample_index >= 0 && prompt.waiting == 0)
    blocks_.release(prompt.held);
}

void scheduler::admit(scheduled_pass& pass) {
  for (auto it = waiting_.begin(); it != waiting_.end() && has_place(*it->second);) {
    const auto known = find_known(*it->second);
    if (under_computation(*it->second, known)) {
      ++it;
      continue;
    }
    if (!has_blocks(*it->second, known))
      return;
    const auto at = it->first;
    sequence& s = *running_.insert(waiting_.extract(it)).position->second;
    attach(s, known, pass);
    if (!grow(s))
      throw error{errc::failed, "scheduler: a cache of " + std::to_string(blocks_.n_blocks()) + " blocks cannot hold a sequence of " +
                                    std::to_string(s.size()) + " tokens"};
    it = waiting_.upper_bound(at);
  }
}

void scheduler::clear_pass() {
  pass_.copies.clear();
  pass_.ends.clear();
  pass_.logit_rows.clear();
  auto& batch = pass_.batch;
  for (auto& seg : batch.segments)
    spare_.push_back(std::move(seg.blocks));
  batch.segments.clear();
  batch.ids.clear();
  batch.positions.clear();
  batch.n_blocks = blocks_.n_blocks();
}

// A segment without its tokens.
void scheduler::append_segment(const sequence& s, std::int32_t position, std::int32_t rows) {
  auto& batch = pass_.batch;
  const auto begin = std::int32_t(batch.ids.size());
  segment seg{begin, begin + rows, position, {}};
  if (!spare_.empty()) {
    seg.blocks = std::move(spare_.back());
    spare_.pop_back();
  }
  seg.blocks.assign(s.blocks.begin(), s.blocks.begin() + blocks_for(position + rows));
  batch.segments.push_back(std::move(seg));
}

void scheduler::append(sequence& s, std::int32_t rows) {
  auto& batch = pass_.batch;
  append_segment(s, s.cached, rows);
  for (std::int32_t i = 0; i < rows; ++i) {
    batch.ids.push_back(s.token(s.cached + i));
    batch.positions.push_back(s.cached + i);
  }
  s.cached += rows;
  if (s.cached == s.size()) {
    pass_.ends.push_back(&s);
    pass_.logit_rows.push_back(std::int32_t(batch.ids.size()) - 1);
  }
}

// Rows of a sample whose last token has been appended. Each is a segment of its own, as decoding passes have them.
void scheduler::append_draft(sequence& s, std::vector<std::int32_t> draft) {
  auto& batch = pass_.batch;
  // Only blocks that nobody will miss in the next pass.
  while (std::int32_t(s.blocks.size()) < blocks_for(s.size() + std::int64_t(draft.size())) && blocks_.n_free() > n_running())
    s.blocks.push_back(allocate());
  draft.resize(std::min(draft.size(), s.blocks.size() * std::size_t(kv_block_tokens) - std::size_t(s.size())));
  for (std::size_t i = 0; i < draft.size(); ++i) {
    const auto position = s.size() + std::int32_t(i);
    append_segment(s, position, 1);
    batch.ids.push_back(draft[i]);
    batch.positions.push_back(position);
    pass_.ends.push_back(&s);
    pass_.logit_rows.push_back(std::int32_t(batch.ids.size()) - 1);
  }
  s.draft = std::move(draft);
}

// One row of every sequence that continues, with its draft, then of those with more to compute as much as fits.
void scheduler::append_rows(const draft_source& draft) {
  chunks_.clear();
  std::int64_t budget = max_batch_tokens_, spare = max_batch_tokens_ - n_running();
  for (auto& [at, s] : running_) {
    s->draft.clear();
    if (s->size() - s->cached > 1) {
      chunks_.push_back(s.get());
    } else if (budget > 0) {
      append(*s, 1);
      --budget;
      if (!draft || spare <= 0 || s->sample_index < 0)
        continue;
      append_draft(*s, draft(*s, spare));
      spare -= std::int64_t(s->draft.size());
      budget -= std::int64_t(s->draft.size());
    }
  }
  for (auto* s : chunks_) {
    const auto rows = std::min<std::int64_t>(budget, s->size() - s->cached);
    if (rows > 0)
      append(*s, std::int32_t(rows));
    budget -= rows;
  }
}

const scheduled_pass& scheduler::next(const draft_source& draft) {
  clear_pass();
  for (auto& [at, s] : running_)
    index(*s);
  // Preemption takes from the end of the order, so what was passed stays.
  for (auto it = running_.begin(); it != running_.end();) {
    const auto at = it->first;
    grow(*it->second);
    it = running_.upper_bound(at);
  }
  admit(pass_);
  append_rows(draft);
  return pass_;
}

} // namespace troupe
