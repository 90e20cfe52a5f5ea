#include "cli/text_stream.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "rollout/sampler.hpp"
#include <algorithm>

namespace troupe {
namespace {

// Bytes at the end of `text` that one of the strings begins with.
std::size_t beginning_at_end(const std::string& text, const std::vector<std::string>& strings) {
  std::size_t most = 0;
  for (const auto& s : strings)
    for (std::size_t n = std::min(s.size() - 1, text.size()); n > most; --n)
      if (text.compare(text.size() - n, n, s, 0, n) == 0)
        most = n;
  return most;
}

} // namespace

text_stream::text_stream(std::shared_ptr<const tokenizer> tok, const sampling_params& params)
    : decoder_(std::make_unique<incremental_decoder>(std::move(tok), true)), stops_(params.stop_strings), matcher_(params.stop_strings),
      min_tokens_(params.min_tokens) {}

text_stream::~text_stream() = default;

std::string text_stream::add(std::int32_t id) {
  ++n_;
  return take(decoder_->add(id), false);
}

std::string text_stream::finish() { return take(decoder_->finish(), true); }

std::string text_stream::take(const std::string& piece, bool last) {
  if (cut_)
    return {};
  held_ += piece;
  cut_ = matcher_.add(piece, n_ > min_tokens_);
  const auto certain = cut_ ? matcher_.position() - emitted_ : held_.size() - (last ? 0 : beginning_at_end(held_, stops_));
  auto out = held_.substr(0, certain);
  held_.erase(0, certain);
  emitted_ += certain;
  return out;
}

} // namespace troupe
