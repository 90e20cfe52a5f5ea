#pragma once
#include "rollout/stop_matcher.hpp"
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

class incremental_decoder;
class tokenizer;
struct sampling_params;

/// A sample's text while it is drawn, as far as it is certain: never half a character, nothing that a stop string may yet cut off.
/// All pieces and finish() joined are the sample's text. One thread.
class text_stream {
public:
  text_stream(std::shared_ptr<const tokenizer> tok, const sampling_params& params);
  ~text_stream();
  std::string add(std::int32_t id);
  std::string finish();

private:
  std::string take(const std::string& piece, bool last);
  std::unique_ptr<incremental_decoder> decoder_;
  std::vector<std::string> stops_;
  stop_matcher matcher_;
  std::int64_t n_ = 0, min_tokens_ = 0;
  std::string held_;        // certain text that may begin a stop string
  std::size_t emitted_ = 0; // bytes
  bool cut_ = false;        // at a stop string
};

} // namespace troupe
