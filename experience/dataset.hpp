#pragma once
#include "core/config.hpp"
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

class tokenizer;
class chat_template;
class reward_function;

/// One prompt of the data, tokenized.
struct prompt_row {
  std::uint64_t source = 0; // row in the data, from 0, through all files in order
  std::vector<std::int32_t> ids;
  std::string answer; // "" when the row has none; numbers and booleans as the file spells them
};

/// What reading prompts needs of a tokenizer and a chat template.
struct prompt_encoder {
  std::function<std::vector<std::int32_t>(std::string_view text, bool add_special_tokens)> encode;
  std::function<std::string(const nlohmann::ordered_json& messages)> render; // with the generation prompt; empty: no template
};

/// tok and chat must outlive the encoder; chat may be null.
prompt_encoder make_prompt_encoder(const tokenizer& tok, const chat_template* chat);

/// Reads and tokenizes all rows of `files` as [data] says. Validated whole: throws errc::bad_input with file, line and reason
/// (bad JSON, missing key, wrong type, empty prompt, too long, no rows). With a reward every row needs an answer that it can
/// be earned for; without one answers are optional.
std::vector<prompt_row> load_prompts(const std::vector<std::string>& files, const data_section& data, const prompt_encoder& encoder,
                                     const reward_function* reward);
std::vector<prompt_row> load_prompts(const std::vector<std::string>& files, const data_section& data, const tokenizer& tok,
                                     const chat_template* chat, const reward_function* reward);

/// The order of prompts: a permutation an epoch by (seed, epoch), cut in batches; an incomplete last batch is dropped.
/// The rows of any step follow from the configuration alone. One thread (it keeps the last epoch's permutation).
class batch_sampler {
public:
  /// Throws errc::bad_config when batch_size > n_rows or is 0.
  batch_sampler(std::uint64_t n_rows, std::uint64_t batch_size, std::uint64_t seed, bool shuffle);
  std::uint64_t steps_per_epoch() const { return n_rows_ / batch_size_; }
  /// Row numbers of step `step` (from 1), [batch_size].
  std::vector<std::uint64_t> rows(std::uint64_t step) const;

private:
  std::uint64_t n_rows_, batch_size_, seed_;
  bool shuffle_;
  mutable std::uint64_t epoch_ = ~std::uint64_t{0}; // of order_
  mutable std::vector<std::uint64_t> order_;        // [n_rows]
};

} // namespace troupe
