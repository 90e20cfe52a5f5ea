#include "actors/system.hpp"
#include "cli/command.hpp"
#include "cli/interrupt.hpp"
#include "cli/loading.hpp"
#include "cli/serve_api.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/compute.hpp"
#include "model/config.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include "model/tokenizer/chat_template.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "rollout/engine.hpp"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <thread>

namespace troupe {
namespace {

using timer = std::chrono::steady_clock;

struct serve_command {
  common_options common;
  std::filesystem::path model, api_key_file;
  std::string listen, api_key, api_key_of_environment;
  bool seeded = false;
  std::int64_t max_num_seqs = 256, request_timeout = 600, drain_timeout = 30;
  serve_options options;
};

std::string api_key(const serve_command& o) {
  if (!o.api_key.empty() && !o.api_key_file.empty())
    throw error{errc::bad_usage, "--api-key and --api-key-file say the same; give one"};
  std::string key = o.api_key.empty() ? o.api_key_of_environment : o.api_key;
  if (!o.api_key_file.empty()) {
    key = read_file(o.api_key_file);
    key.erase(std::find_if(key.begin(), key.end(), [](char c) { return c == '\n' || c == '\r'; }), key.end());
    if (key.empty())
      throw error{errc::bad_input, "--api-key-file " + o.api_key_file.string() + ": its first line is empty; the key stands there"};
  }
  return key;
}

// "" and "." are no names.
std::string name_of_directory(const std::filesystem::path& dir) {
  const auto whole = std::filesystem::weakly_canonical(dir);
  return whole.has_filename() ? whole.filename().string() : whole.parent_path().filename().string();
}

generator_options options_for(const serve_command& o, const model_config& cfg, const compute& where) {
  generator_options out;
  out.max_num_seqs = o.max_num_seqs;
  out.eos_token_ids = load_eos_token_ids(o.model, cfg);
  out.parallel_for = [&where](std::int64_t n, const std::function<void(std::int64_t)>& f) { where.pool().each(n, f); };
  return out;
}

void print_summary(const engine_counts& c, timer::time_point begin) {
  const std::uint64_t ended = c.stopped + c.at_length;
  std::fprintf(stderr, "{\"samples\": %llu, \"aborted\": %llu, \"prompt_tokens\": %llu, \"output_tokens\": %llu, \"seconds\": %.6g}\n",
               static_cast<unsigned long long>(ended), static_cast<unsigned long long>(c.aborted),
               static_cast<unsigned long long>(c.prompt_tokens), static_cast<unsigned long long>(c.output_tokens),
               std::chrono::duration<double>(timer::now() - begin).count());
}

// Until a signal comes or the engine fails; then what is under way ends, in its time.
void serve_until_signal(const serve_command& o, serve_api& api, engine& e) {
  const interrupt signals;
  std::thread answering([&api] { api.run(); });
  const auto tick = std::chrono::milliseconds(50);
  while (interrupt::received() == 0 && !e.failed())
    std::this_thread::sleep_for(tick);
  api.stop_accepting();
  const auto until = timer::now() + std::chrono::seconds(o.drain_timeout);
  while (!e.idle() && timer::now() < until)
    std::this_thread::sleep_for(tick);
  e.cancel();
  answering.join();
}

int serve(serve_command& o) {
  auto [host, port] = parse_address(o.listen, "--listen");
  o.options.api_key = api_key(o);
  if (host != "[::1]" && !is_loopback(host) && o.options.api_key.empty())
    throw error{errc::bad_usage,
                "--listen " + o.listen + " can be reached from other machines: give an --api-key-file, or listen on 127.0.0.1"};
  if (host.starts_with('[') && host.ends_with(']'))
    host = host.substr(1, host.size() - 2);
  const auto cfg = load_model_config(o.model);
  if (cfg.head != head_kind::lm)
    throw error{errc::bad_input, "serve: " + cfg.architecture + " of " + o.model.string() + " gives no logits; a CausalLM is wanted"};
  const auto where = make_compute(o.common);
  const auto tok = tokenizer::load(o.model);
  const auto chat = chat_template::load(o.model);
  const auto type = compute_type(o.common, o.model);
  if (o.options.model_name.empty())
    o.options.model_name = name_of_directory(o.model);
  o.options.fingerprint = std::string("troupe-0.1.0-") + (type == dtype::bf16 ? "bfloat16" : "float32");
  o.options.request_limit = std::chrono::seconds(o.request_timeout);
  o.options.http.max_connections = std::size_t(o.max_num_seqs + o.options.max_queue) + 64;
  const auto model = load_model(o.model, {.compute_type = type}, *where, loading_line().progress());
  engine e(std::make_unique<generator>(model, tok, options_for(o, cfg, *where)), o.options.max_queue);
  serve_api api(o.options, e,
                {tok.get(),
                 chat.get(),
                 {cfg.vocab_size, cfg.max_position_embeddings},
                 o.options.max_queue,
                 fresh_seeds(o.seeded ? std::optional(o.common.seed) : std::nullopt)},
                tok);
  const int bound = api.bind(host, port);
  const auto begin = timer::now();
  std::printf("serving %s on http://%s:%d\n", o.options.model_name.c_str(),
              host.find(':') == host.npos ? host.c_str() : ("[" + host + "]").c_str(), bound);
  std::fflush(stdout);
  serve_until_signal(o, api, e);
  if (e.failed())
    throw error{errc::failed, "serve: a pass of the model failed; the answers of the requests under way say why"};
  print_summary(e.counts(), begin);
  return 0;
}

} // namespace

void add_serve(CLI::App& root, action& chosen) {
  auto o = std::make_shared<serve_command>();
  CLI::App* app = root.add_subcommand("serve", "OpenAI-compatible server");
  const auto whole = [](std::int64_t low) { return CLI::Range(low, std::int64_t(1) << 20); };
  app->add_option("--model", o->model, "model directory")->required();
  app->add_option("--listen", o->listen, "HOST:PORT; port 0: any free one, which the first line of stdout names")->required();
  app->add_option("--served-model-name", o->options.model_name, "what requests call the model; default: the directory's name");
  app->add_option("--api-key", o->api_key, "asked for as Authorization: Bearer KEY; also TROUPE_API_KEY; needed off the loopback");
  app->add_option("--api-key-file", o->api_key_file, "a file whose first line is the key, which is then on no command line");
  app->add_option("--max-num-seqs", o->max_num_seqs, "sequences that run at once")->capture_default_str()->check(whole(1));
  app->add_option("--max-queue", o->options.max_queue, "prompts without a first token, above which requests are refused with 429")
      ->capture_default_str()
      ->check(whole(1));
  app->add_option("--max-request-bytes", o->options.http.max_request_bytes, "longer requests are refused with 413")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t(1024), std::int64_t(1) << 30));
  app->add_option("--request-timeout", o->request_timeout, "seconds; what takes longer ends with 504")
      ->capture_default_str()
      ->check(whole(1));
  app->add_option("--drain-timeout", o->drain_timeout, "seconds that requests under way have after SIGTERM or SIGINT")
      ->capture_default_str()
      ->check(whole(0));
  add_common_options(*app, o->common);
  if (const char* key = std::getenv("TROUPE_API_KEY"))
    o->api_key_of_environment = key;
  app->callback([o, app, &chosen] {
    o->seeded = app->get_option("--seed")->count() > 0;
    chosen = [o] { return serve(*o); };
  });
}

} // namespace troupe
