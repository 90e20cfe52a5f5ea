#pragma once
#include "actors/policy_server.hpp"
#include "actors/run_host.hpp"
#include "core/config.hpp"
#include "experience/dataset.hpp"
#include "experience/sft_rows.hpp"
#include "model/config.hpp"
#include "model/kernels/isa.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

/// What a run begins with: validated, nothing computed yet.
struct run_inputs {
  config cfg; // paths absolute
  model_config model;
  std::vector<std::int32_t> end_tokens;
  std::shared_ptr<const tokenizer> tok;
  std::shared_ptr<const chat_template> chat;    // null: the model has none
  policy_server_maker serve;                    // for rollout.serve
  std::vector<prompt_row> train_rows, val_rows; // of `rl`
  std::vector<sft_row> sft_train, sft_val;      // of `sft` and `distill`
  std::time_t template_time = 0;                // that the chat template prints
  std::int64_t total_steps = 0;
  std::string resume_only; // this checkpoint and no other
  int threads = 0;         // 0: one a core
  isa which = isa::scalar;
  int gpu = -1; // that models are made on; -1: the CPU
};

/// Throws errc::bad_config or errc::unsupported, naming the key: placement and channel that do not go together, an address
/// that others can reach, messages that would not fit.
void check_placement(const config& cfg);

/// Throws errc::bad_config when the run could not listen where it is told to, as things are now.
void check_listen(const config& cfg);

/// Trains to the end: in this process, or as coordinator, reward, weight sync and supervisor of worker processes.
/// Called by the main thread; SIGINT and SIGTERM are taken over. Throws the first cause of a failure; errc::cancelled after a stop.
void run_training(const run_inputs& inputs, run_outputs& outputs);

/// What a worker process was started with.
struct worker_options {
  std::string join;        // HOST:PORT
  std::string secret;      // empty: this user's run on that port
  std::int64_t parent = 0; // pid of the `train` that started it; 0: none
  int threads = 0;
  isa which = isa::scalar;
  int gpu = -1;              // that models are made on; -1: the CPU
  policy_server_maker serve; // for rollout.serve
};

/// Takes part in a run until it ends. Returns the exit code; throws when it cannot join.
int run_worker(const worker_options& options);

} // namespace troupe
