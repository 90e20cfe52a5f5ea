#include "cli/fit.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/adapter_fit.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "model/weights/json.hpp"
#include "model/weights/tensor_check.hpp"
#include <algorithm>
#include <cstdio>

namespace troupe {

namespace {

std::vector<std::vector<std::int32_t>> sequences_of(const fit_command& options, const tokenizer& tok, std::int64_t vocab_size) {
  const auto ids = tok.encode(read_file(options.text), false);
  std::vector<std::vector<std::int32_t>> sequences;
  const auto n = std::min(std::int64_t(ids.size()), options.tokens);
  for (std::int64_t begin = 0; begin < n; begin += options.sequence_length)
    sequences.emplace_back(ids.begin() + begin, ids.begin() + std::min(n, begin + options.sequence_length));
  for (std::int64_t i = 0; i < n; ++i)
    if (ids[std::size_t(i)] >= vocab_size)
      throw error(errc::bad_input, options.text.string() + ": the tokenizer gives id " + std::to_string(ids[std::size_t(i)]) +
                                       ", and the models' vocabulary has " + std::to_string(vocab_size));
  if (sequences.size() < 10)
    throw error(errc::bad_input, options.text.string() + ": " + std::to_string(n) + " tokens make " + std::to_string(sequences.size()) +
                                     " sequences of " + std::to_string(options.sequence_length) +
                                     "; at least 10 are needed (more text, or a smaller --fit-length)");
  return sequences;
}

safetensors_reader open_source(const std::filesystem::path& config, const std::string& key, const std::string& path,
                               const model_config& whole) {
  if (path.empty())
    throw error(errc::bad_input, config.string() + ": " + key + ": is missing; the weights are read from the directory that it names");
  safetensors_reader files(path);
  check_tensors(files, whole);
  return files;
}

} // namespace

new_adapter fit_to_text(const std::filesystem::path& config, const fit_command& options, compute& where) {
  const model_config cfg = parse_model_config(read_model_file(config), config.string());
  if (!cfg.split || cfg.split->start != adapter_start::fit || !cfg.split->adapter_path.empty())
    throw error(errc::bad_usage,
                "--fit-text: " + config.string() + " does not ask for it; that takes adapter_init = \"fit\" and no adapter_path");
  const auto whole = sources_of(*cfg.split);
  const auto first = open_source(config, "path8b", cfg.split->path_8, whole.first);
  const auto second = open_source(config, "path70b", cfg.split->path_70, whole.second);
  const auto tok = tokenizer::load(cfg.split->path_8);
  const auto fit = fit_adapter(cfg, first, second, sequences_of(options, *tok, cfg.vocab_size), options.ridge, where);
  const fit_report& r = fit.report;
  const nlohmann::ordered_json report = {{"tokens", r.tokens},
                                         {"held_out_tokens", r.held_out},
                                         {"ridge", options.ridge},
                                         {"explained_variance_before", r.explained_before},
                                         {"explained_variance_after", r.explained_after},
                                         {"perplexity_before", r.perplexity_before},
                                         {"perplexity_after", r.perplexity_after}};
  std::fprintf(stderr, "%s\n", report.dump().c_str());
  return {fit.linear1, fit.linear2, report.dump(1) + "\n"};
}

} // namespace troupe
