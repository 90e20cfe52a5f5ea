#include "rollout/generator.hpp"
#include "core/error.hpp"
#include "core/trace.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "rollout/row_cost.hpp"
#include "rollout/scheduler.hpp"
#include "rollout/stop_matcher.hpp"
#include "rollout/suffix_drafter.hpp"
#include <algorithm>
#include <chrono>
#include <exception>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <utility>

namespace troupe {

namespace {

// Bytes of memory that may be taken without swapping; 0 where the system does not say.
std::int64_t available_memory() {
  std::ifstream in{"/proc/meminfo"};
  for (std::string name; in >> name;) {
    std::int64_t kib = 0;
    if (name == "MemAvailable:" && in >> kib)
      return kib * 1024;
    in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

std::int64_t default_blocks(const causal_lm& model, const generator_options& options) {
  const std::int64_t most = std::min<std::int64_t>(options.max_num_seqs * blocks_for(options.max_sequence), INT32_MAX);
  const std::int64_t bytes = model.cache_memory() >= 0 ? model.cache_memory() : available_memory() / 2;
  const auto memory = bytes / std::max<std::int64_t>(1, std::int64_t(model.cache_block_bytes()));
  return memory == 0 ? most : std::clamp<std::int64_t>(memory, blocks_for(options.max_sequence), most);
}

void make_set(std::vector<std::int32_t>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

} // namespace

struct generator::impl {
  // A sample under way, beside its scheduled sequence.
  struct sample_state {
    sample result;
    bool done = false;
    token_counts drawn;                           // penalties only
    std::vector<token_logprob> top;               // [output_ids, top_logprobs]
    std::unique_ptr<incremental_decoder> decoder; // stop strings only
    std::unique_ptr<stop_matcher> stops;
  };
  struct request_state {
    generation_request request;
    std::shared_ptr<scheduled_prompt> prompt = std::make_shared<scheduled_prompt>();
    std::vector<std::int32_t> end_ids;         // sorted
    std::vector<std::int32_t> prompt_ids_once; // sorted; penalties only
    std::vector<sample_state> samples;         // [n]
  };
  struct drawn {
    sequence* from = nullptr;
    request_state* state = nullptr;
    std::int64_t sample_index = 0;
    bool first = false;                 // from the prompt's last row
    std::int32_t offset = 0;            // tokens of the draft before it: it counts if they are what was drawn
    std::int32_t row = 0, position = 0; // of the pass's logits; of the token drawn
    std::int32_t id = -1;               // -1: not drawn
    float logprob = 0;
    std::vector<token_logprob> top;
    std::exception_ptr failure;
    std::int64_t n_drawn() const { return std::int64_t(state->samples[std::size_t(sample_index)].result.output_ids.size()) + offset; }
  };

  std::shared_ptr<causal_lm> model;
  std::shared_ptr<const tokenizer> tok;
  generator_options options;
  std::unique_ptr<kv_cache> cache;
  std::unique_ptr<scheduler> plan;
  std::map<std::uint64_t, request_state> requests;             // by the caller's id
  std::map<const scheduled_prompt*, request_state*> by_prompt; // the same
  std::unique_ptr<suffix_drafter> drafter;                     // null: no drafts
  row_cost costs;                                              // decides how likely a draft must be
  std::vector<std::uint64_t> aborted;
  std::vector<float> logits;
  weights_version version;
  generator_counts counts;

  void check(const generation_request& r) const;
  std::vector<std::int32_t> end_ids_of(const generation_request& r) const; // sorted
  std::vector<std::int32_t> draft_for(const sequence& s, std::int64_t most);
  const scheduled_pass& plan_pass();
  std::vector<drawn> draws_of(const scheduled_pass& pass);
  draw_key key_of(const drawn& d) const;
  void draw_one(drawn& d, const float* row) const;
  sampling_history history_of(const drawn& d) const;
  void draw_in_model(const scheduled_pass& pass, std::vector<drawn>& draws);
  void draw_run(std::span<drawn> run) const;
  void draw_on_host(const scheduled_pass& pass, std::vector<drawn>& draws);
  void each(bool costly, std::size_t n, const std::function<void(std::size_t)>& f) const;
  void run(const scheduled_pass& pass, std::vector<drawn>& draws);
  bool accept(const drawn& d, std::vector<generation_output>& out);
  std::size_t accept_run(std::vector<drawn>& draws, std::size_t first, std::vector<generation_output>& out);
  bool ended(const request_state& state, sample_state& s) const;
  void emit(request_state& state, std::int64_t index, std::vector<generation_output>& out) const;
  void finish_aborted(std::vector<generation_output>& out);
  void forget(std::uint64_t id);
};

std::vector<std::int32_t> generator::impl::end_ids_of(const generation_request& r) const {
  auto ids = r.params.stop_ids;
  if (!r.params.ignore_eos)
    ids.insert(ids.end(), options.eos_token_ids->begin(), options.eos_token_ids->end());
  std::sort(ids.begin(), ids.end());
  return ids;
}

void generator::impl::check(const generation_request& r) const {
  const std::string who = "request " + std::to_string(r.id);
  const auto length = std::int64_t(r.prompt_ids.size());
  if (length == 0)
    throw error{errc::bad_input, who + ": the prompt has no token"};
  if (length >= options.max_sequence)
    throw error{errc::bad_input, who + ": the prompt has " + std::to_string(length) + " tokens and leaves no room in " +
                                     std::to_string(options.max_sequence) + "; shorten it"};
  for (const auto id : r.prompt_ids)
    if (id < 0 || id >= model->config().vocab_size)
      throw error{errc::bad_input,
                  who + ": token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(model->config().vocab_size)};
  if (r.n < 1)
    throw error{errc::bad_usage, who + ": n is " + std::to_string(r.n) + "; it must be at least 1"};
  check_sampling(r.params, model->config().vocab_size);
  if (!(r.logprob_temperature > 0))
    throw error{errc::bad_usage, who + ": the log-probs' temperature must be above 0"};
  if (!r.params.stop_strings.empty() && !tok)
    throw error{errc::bad_usage, who + ": stop strings need a tokenizer"};
  auto ends = end_ids_of(r);
  const auto& allowed = r.params.allowed_ids;
  if (r.params.min_tokens > 0 && !allowed.empty() &&
      std::all_of(allowed.begin(), allowed.end(), [&](std::int32_t id) { return std::binary_search(ends.begin(), ends.end(), id); }))
    throw error{errc::bad_usage, who + ": every allowed token ends the sample, which min_tokens forbids; allow another or set it to 0"};
  make_set(ends);
  if (r.params.min_tokens > 0 &&
      std::lower_bound(ends.begin(), ends.end(), model->config().vocab_size) - std::lower_bound(ends.begin(), ends.end(), 0) ==
          model->config().vocab_size)
    throw error{errc::bad_usage, who + ": every token ends the sample, which min_tokens forbids; give fewer stop_token_ids or set it to 0"};
  // The last token is never run.
  const auto longest = std::min(length + std::min(r.params.max_tokens, options.max_sequence), options.max_sequence) - 1;
  if (blocks_for(longest) > plan->blocks().n_blocks())
    throw error{errc::bad_input, who + ": it may grow to " + std::to_string(longest) + " tokens, " + std::to_string(blocks_for(longest)) +
                                     " cache blocks, and the whole cache has " + std::to_string(plan->blocks().n_blocks()) +
                                     "; lower max_tokens or raise the cache"};
  if (requests.count(r.id) != 0)
    throw error{errc::bad_input, who + ": a request of that id is under way"};
}

// Tokens to run after a sample's last: none that could not be drawn, and none to follow one that ends it.
std::vector<std::int32_t> generator::impl::draft_for(const sequence& s, std::int64_t most) {
  const auto& state = *by_prompt.at(s.prompt.get());
  const auto& request = state.request;
  if (model->draws() && has_penalty(request.params)) // a token's penalties depend on those before it, which the same pass draws
    return {};
  most = std::min({most, options.speculative.num_speculative_tokens, options.max_sequence - s.size() - 1,
                   request.params.max_tokens - std::int64_t(s.output_ids.size()) - 1});
  if (most <= 0)
    return {};
  const double row = options.speculative.row_cost > 0 ? options.speculative.row_cost : costs.at(plan->n_running());
  auto draft = drafter->propose(request.id, s.sample_index, most, row * double(plan->n_running()));
  const auto ends = [&](std::int32_t id) { return std::binary_search(state.end_ids.begin(), state.end_ids.end(), id); };
  draft.erase(std::find_if(draft.begin(), draft.end(), ends), draft.end());
  return draft;
}

const scheduled_pass& generator::impl::plan_pass() {
  if (!drafter)
    return plan->next();
  return plan->next([this](const sequence& s, std::int64_t most) {
    return plan->n_running() <= options.speculative.disable_by_batch_size ? draft_for(s, most) : std::vector<std::int32_t>();
  });
}

// The tokens this pass may give: one a sequence and one more a token of its draft, one a sample of a prompt that it completed.
std::vector<generator::impl::drawn> generator::impl::draws_of(const scheduled_pass& pass) {
  std::vector<drawn> all;
  for (std::size_t i = 0; i < pass.ends.size(); ++i) {
    drawn d;
    d.from = pass.ends[i];
    d.state = by_prompt.at(d.from->prompt.get());
    d.row = std::int32_t(i);
    d.offset = i > 0 && d.from == pass.ends[i - 1] ? all.back().offset + 1 : 0;
    d.position = d.from->size() + d.offset;
    d.first = d.from->sample_index < 0;
    for (std::int64_t s = 0; s < (d.first ? d.state->request.n : 1); ++s) {
      d.sample_index = d.first ? s : d.from->sample_index;
      all.push_back(d);
    }
  }
  return all;
}

draw_key generator::impl::key_of(const drawn& d) const {
  draw_key key = d.state->request.key;
  key.sample = std::uint32_t(d.sample_index);
  key.position = std::uint32_t(d.position);
  return key;
}

void generator::impl::draw_one(drawn& d, const float* logits_of_row) const {
  try {
    const std::span<const float> row{logits_of_row, std::size_t(model->config().vocab_size)};
    const auto& request = d.state->request;
    d.id = sample_token(row, request.params, key_of(d), history_of(d));
    if (has_penalty(request.params))
      ++d.state->samples[std::size_t(d.sample_index)].drawn[d.id];
    d.logprob = model->logprob(row.data(), d.id, request.logprob_temperature);
    if (request.params.top_logprobs > 0)
      for (const auto id : most_probable_ids(row, request.params.top_logprobs))
        d.top.push_back({id, model->logprob(row.data(), id, request.logprob_temperature)});
  } catch (const error&) {
    d.failure = std::current_exception();
  }
}

sampling_history generator::impl::history_of(const drawn& d) const {
  const auto& s = d.state->samples[std::size_t(d.sample_index)];
  return {d.state->prompt_ids_once, &s.drawn, d.n_drawn(), d.state->end_ids};
}

// The pass with draws that the model makes itself.
void generator::impl::draw_in_model(const scheduled_pass& pass, std::vector<drawn>& draws) {
  const auto vocab = model->config().vocab_size;
  std::vector<token_draw> asked(draws.size());
  std::vector<logit_edits> edits(draws.size());
  std::vector<std::vector<drawn_token>> tops(draws.size());
  const auto ask = [&](std::size_t i) {
    const drawn& d = draws[i];
    const auto& p = d.state->request.params;
    const auto history = history_of(d);
    asked[i] = {.row = d.row, .temperature = p.temperature, .u = draw_place(key_of(d)), .top_p = p.top_p, .min_p = p.min_p};
    asked[i].top_k = p.top_k > 0 && p.top_k < vocab ? std::int32_t(p.top_k) : 0;
    asked[i].logprob_temperature = d.state->request.logprob_temperature;
    if (has_rules(p, history.n_drawn)) {
      edits[i] = edits_of(p, history, vocab);
      asked[i].edits = &edits[i];
    }
    tops[i].resize(std::size_t(std::min(p.top_logprobs, vocab)));
    asked[i].top = tops[i].data();
    asked[i].n_top = std::int32_t(tops[i].size());
  };
  const bool long_lists = std::any_of(draws.begin(), draws.end(), [](const drawn& d) { return has_penalty(d.state->request.params); });
  each(long_lists, draws.size(), ask);
  std::vector<drawn_token> tokens(draws.size());
  model->forward_draw(pass.batch, *cache, pass.logit_rows, asked, tokens.data());
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const auto fail = [&](const std::string& what, const std::string& why) {
      draws[i].failure = std::make_exception_ptr(
          error{errc::failed, "sampling: " + what + " of request " + std::to_string(draws[i].state->request.id) + why});
    };
    if (tokens[i].id == not_finite)
      fail("a logit", " is not a finite number; the weights or activations overflowed (try --dtype float32)");
    if (tokens[i].id == none_left)
      fail("no token", " is left to draw; allowed ids, end tokens and min_tokens exclude each other");
    draws[i].id = tokens[i].id;
    draws[i].logprob = tokens[i].logprob;
    for (const auto& t : tops[i])
      draws[i].top.push_back({t.id, t.logprob});
    if (has_penalty(draws[i].state->request.params)) // such samples have no draft: what is drawn counts
      ++draws[i].state->samples[std::size_t(draws[i].sample_index)].drawn[tokens[i].id];
  }
}

// f(i) for i in [0, n), on any threads where it is `costly`.
void generator::impl::each(bool costly, std::size_t n, const std::function<void(std::size_t)>& f) const {
  if (costly && options.parallel_for)
    options.parallel_for(std::int64_t(n), [&](std::int64_t i) { f(std::size_t(i)); });
  else
    for (std::size_t i = 0; i < n; ++i)
      f(i);
}

// The tokens of one sequence, in order, as far as they are those of its draft.
void generator::impl::draw_run(std::span<drawn> run) const {
  for (auto& d : run) {
    draw_one(d, logits.data() + std::size_t(d.row) * std::size_t(model->config().vocab_size));
    const auto& draft = d.from->draft;
    if (d.failure || std::size_t(d.offset) >= draft.size() || d.id != draft[std::size_t(d.offset)])
      return;
  }
}

// The pass, and draws from its logits.
void generator::impl::draw_on_host(const scheduled_pass& pass, std::vector<drawn>& draws) {
  logits.resize(pass.ends.size() * std::size_t(model->config().vocab_size));
  model->forward(pass.batch, *cache, pass.logit_rows, logits.data());
  std::vector<std::span<drawn>> runs;
  for (std::size_t begin = 0, end = 0; begin < draws.size(); begin = end) {
    for (end = begin + 1; end < draws.size() && draws[end].offset > 0;)
      ++end;
    runs.push_back(std::span(draws).subspan(begin, end - begin));
  }
  each(true, runs.size(), [&](std::size_t i) { draw_run(runs[i]); });
}

void generator::impl::run(const scheduled_pass& pass, std::vector<drawn>& draws) {
  model->draws() ? draw_in_model(pass, draws) : draw_on_host(pass, draws);
}

// Whether the sample ended with its newest token; sets how.
bool generator::impl::ended(const request_state& state, sample_state& s) const {
  const auto& params = state.request.params;
  const auto id = s.result.output_ids.back();
  const auto n = std::int64_t(s.result.output_ids.size());
  const bool matched = s.stops && s.stops->add(s.decoder->add(id), n > params.min_tokens);
  const bool stop = matched || std::binary_search(state.end_ids.begin(), state.end_ids.end(), id);
  if (!stop && n < params.max_tokens && std::int64_t(state.request.prompt_ids.size()) + n < options.max_sequence)
    return false;
  // What the decoder held back may complete a stop string too.
  const bool flushed = !matched && s.stops && s.stops->add(s.decoder->finish(), n > params.min_tokens);
  s.result.finish = stop || flushed ? finish_reason::stop : finish_reason::length;
  return true;
}

void generator::impl::emit(request_state& state, std::int64_t index, std::vector<generation_output>& out) const {
  auto& s = state.samples[std::size_t(index)];
  s.done = true;
  out.push_back({state.request.id, index, std::move(s.result), s.stops ? s.stops->position() : std::string::npos, std::move(s.top)});
}

// -> whether the sample goes on.
bool generator::impl::accept(const drawn& d, std::vector<generation_output>& out) {
  if (d.failure)
    std::rethrow_exception(d.failure);
  auto& state = *d.state;
  auto& s = state.samples[std::size_t(d.sample_index)];
  s.result.output_ids.push_back(d.id);
  s.result.logprobs.push_back(d.logprob);
  s.result.versions.push_back(version);
  s.top.insert(s.top.end(), d.top.begin(), d.top.end());
  if (state.request.on_token)
    state.request.on_token({state.request.id, d.sample_index, {d.id, d.logprob}, d.top, version});
  if (drafter)
    drafter->append(state.request.id, d.sample_index, d.id);
  if (ended(state, s)) {
    emit(state, d.sample_index, out);
    plan->finish_sample(*state.prompt, d.first ? nullptr : d.from);
    return false;
  }
  if (d.first) {
    auto next = std::make_unique<sequence>();
    next->prompt = state.prompt;
    next->sample_index = d.sample_index;
    next->output_ids = {d.id};
    plan->add_sample(std::move(next));
  } else {
    d.from->output_ids.push_back(d.id);
  }
  return true;
}

// Takes the draws of one sequence from `first` on as far as they count -> the next sequence's first. A draft's keys and values
// beyond that are overwritten by what comes.
std::size_t generator::impl::accept_run(std::vector<drawn>& draws, std::size_t first, std::vector<generation_output>& out) {
  const drawn& begin = draws[first];
  const auto draft = begin.first ? std::vector<std::int32_t>() : std::exchange(begin.from->draft, {});
  std::size_t taken = 0;
  while (accept(draws[first + taken], out) && taken < draft.size() && draws[first + taken].id == draft[taken]) {
    ++taken;
    ++begin.from->cached;
  }
  if (!draft.empty()) {
    counts.drafted += std::int64_t(draft.size());
    counts.accepted += std::int64_t(taken);
    drafter->settle(begin.state->request.id, begin.sample_index, std::int64_t(taken));
  }
  return first + draft.size() + 1;
}

void generator::impl::forget(std::uint64_t id) {
  if (drafter)
    drafter->end(id);
  by_prompt.erase(requests.at(id).prompt.get());
  requests.erase(id);
}

void generator::impl::finish_aborted(std::vector<generation_output>& out) {
  for (const auto id : std::exchange(aborted, {})) {
    const auto it = requests.find(id);
    if (it == requests.end())
      continue;
    auto& state = it->second;
    plan->remove(*state.prompt);
    for (std::size_t i = 0; i < state.samples.size(); ++i)
      if (!state.samples[i].done) {
        state.samples[i].result.finish = finish_reason::abort;
        emit(state, std::int64_t(i), out);
      }
    forget(id);
  }
}

generator::generator(std::shared_ptr<causal_lm> model, std::shared_ptr<const tokenizer> tok, generator_options options)
    : impl_(std::make_unique<impl>()) {
  auto& self = *impl_;
  const auto& config = model->config();
  if (options.max_num_seqs < 1 || options.max_batch_tokens < 1 || options.cache_blocks < 0 ||
      options.speculative.num_speculative_tokens < 0)
    throw error{errc::bad_usage,
                "generator: max_num_seqs and max_batch_tokens must be at least 1, cache_blocks and num_speculative_tokens at least 0"};
  if (options.max_sequence == 0 || options.max_sequence > config.max_position_embeddings)
    options.max_sequence = config.max_position_embeddings;
  if (options.cache_blocks == 0)
    options.cache_blocks = default_blocks(*model, options);
  if (!options.eos_token_ids)
    options.eos_token_ids = config.eos_token_ids;
  self.cache = model->make_cache(std::int32_t(options.cache_blocks));
  self.plan = std::make_unique<scheduler>(self.cache->n_blocks(), options.max_num_seqs, options.max_batch_tokens);
  if (options.speculative.num_speculative_tokens > 0)
    self.drafter = std::make_unique<suffix_drafter>();
  self.model = std::move(model);
  self.tok = std::move(tok);
  self.options = std::move(options);
}

generator::~generator() = default;

void generator::add(generation_request request) {
  auto& self = *impl_;
  self.check(request);
  const auto id = request.id;
  auto& state = self.requests[id];
  state.end_ids = self.end_ids_of(request);
  make_set(request.params.allowed_ids);
  if (has_penalty(request.params)) {
    state.prompt_ids_once = request.prompt_ids;
    make_set(state.prompt_ids_once);
  }
  state.samples.resize(std::size_t(request.n));
  if (!request.params.stop_strings.empty())
    for (auto& s : state.samples) {
      s.decoder = std::make_unique<incremental_decoder>(self.tok, true);
      s.stops = std::make_unique<stop_matcher>(request.params.stop_strings);
    }
  state.prompt->ids = request.prompt_ids;
  state.prompt->unfinished = request.n;
  state.prompt->expected = request.expected_tokens;
  state.request = std::move(request);
  if (self.drafter)
    self.drafter->begin(id, state.prompt->ids, state.request.n);
  self.by_prompt[state.prompt.get()] = &state;
  self.plan->add_prompt(state.prompt);
}

std::vector<generation_output> generator::step() {
  const trace_span span{"generate.step"};
  auto& self = *impl_;
  std::vector<generation_output> out;
  self.finish_aborted(out);
  if (self.plan->idle())
    return out;
  if (!self.cache)
    throw error{errc::failed, "generator: it is asleep; wake it before the next step"};
  const auto& pass = self.plan_pass();
  for (const auto& [from, to] : pass.copies)
    self.cache->copy_block(from, to);
  auto draws = self.draws_of(pass);
  const auto begin = std::chrono::steady_clock::now();
  self.run(pass, draws);
  if (const auto rows = pass.batch.ids.size(); rows == pass.batch.segments.size())
    self.costs.add(std::int64_t(rows), std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  ++self.counts.passes;
  self.counts.rows += std::int64_t(pass.batch.ids.size());
  for (std::size_t i = 0; i < draws.size();) {
    const auto& d = draws[i];
    if (d.first && d.sample_index == 0)
      self.plan->prompt_done(*d.from);
    i = self.accept_run(draws, i, out);
    if (d.state->prompt->unfinished == 0)
      self.forget(d.state->request.id);
  }
  return out;
}

std::int64_t generator::max_num_seqs() const { return impl_->options.max_num_seqs; }

bool generator::idle() const { return impl_->requests.empty(); }

void generator::abort(std::uint64_t id) { impl_->aborted.push_back(id); }

void generator::set_version(weights_version version, inflight_cache under_way) {
  auto& self = *impl_;
  self.version = version;
  if (under_way == inflight_cache::recompute)
    self.plan->drop_cache();
  else
    self.plan->weights_changed();
}

void generator::sleep() {
  impl_->plan->drop_cache();
  impl_->cache.reset();
}

void generator::wake() {
  auto& self = *impl_;
  if (!self.cache)
    self.cache = self.model->make_cache(self.plan->blocks().n_blocks());
}

generator_counts generator::counts() const {
  auto counts = impl_->counts;
  counts.preemptions = impl_->plan->preemptions();
  counts.reused_prompt_tokens = impl_->plan->reused_prompt_tokens();
  counts.blocks = impl_->plan->blocks().n_blocks();
  counts.free_blocks = impl_->plan->blocks().n_free();
  return counts;
}

} // namespace troupe
