#pragma once
#include "core/config.hpp"
#include "experience/dataset.hpp"
#include "experience/sft_rows.hpp"
#include "model/config.hpp"
#include "model/tokenizer/chat_template.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

enum class run_purpose : std::uint8_t { train, eval };

/// A configuration whose files were read and found good: all that a run needs and that costs no computing.
struct validated_run {
  config cfg; // distill.teacher resolved
  model_config model;
  std::optional<model_config> teacher; // of `distill`
  std::vector<std::int32_t> end_tokens;
  std::shared_ptr<const tokenizer> tok;
  std::shared_ptr<const chat_template> chat;    // null when the model has none
  std::time_t template_time = 0;                // strftime_now's: of the run's first start
  std::vector<prompt_row> train_rows, val_rows; // train_rows: empty for eval
  std::vector<sft_row> sft_train, sft_val;      // the same of `sft` and `distill`
  std::int64_t total_steps = 0;                 // run.total_epochs resolved
  std::uint64_t n_parameters = 0, n_trainable = 0;
  std::size_t n_train() const { return train_rows.size() + sft_train.size(); }
  std::size_t n_val() const { return val_rows.size() + sft_val.size(); }
  std::vector<std::string> warnings; // one line each; nothing that stops a run
};

/// Reads model directory (headers only), tokenizer, template and data, and checks them against the configuration.
/// Throws troupe::error of the first fault, naming key, file, line or tensor. `check` and `train` refuse the same.
validated_run validate_run(config cfg, run_purpose purpose = run_purpose::train);

/// The time that the run's templates print, kept in its directory since its first start; nothing before that. Throws errc::bad_input.
std::optional<std::time_t> kept_template_time(const config& cfg);
void keep_template_time(const config& cfg, std::time_t time);

/// Whether the run's directory may be written: fresh, or a run of this configuration that `run.resume` lets go on.
/// Returns whether it has been used. Throws errc::bad_config: used with resume = "never", the keys that differ, a
/// directory that is no run's, a checkpoint of another run.
bool check_run_directory(const config& cfg);

} // namespace troupe
