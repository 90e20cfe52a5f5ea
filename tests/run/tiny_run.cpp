#include "tests/run/tiny_run.hpp"
#include "core/files.hpp"
#include "core/random.hpp"
#include "model/weights/safetensors.hpp"
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <linux/capability.h>
#include <nlohmann/json.hpp>
#include <sstream>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <system_error>
#include <thread>
#include <unistd.h>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int n_special = 16; // every one ends a sample
constexpr int vocab = 256 + n_special;
constexpr int hidden = 64, intermediate = 96, n_layers = 3, n_heads = 4, n_kv_heads = 2, head_dim = 16;

void put_utf8(std::string& out, int code) {
  if (code < 0x80) {
    out += char(code);
  } else {
    out += char(0xC0 | code >> 6);
    out += char(0x80 | (code & 0x3F));
  }
}

/// GPT-2's letter for each byte.
std::string byte_letter(int byte) {
  const auto printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255); };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b)
      code += printable(b) ? 0 : 1;
  }
  std::string out;
  put_utf8(out, code);
  return out;
}

} // namespace

tiny_world::tiny_world() {
  char name[] = "/tmp/troupe_run_XXXXXX";
  dir_ = mkdtemp(name);
  fs::create_directory(dir_ / "model");
  write_model();
  write_tokenizer();
  write_data();
  write_config();
}

tiny_world::~tiny_world() { fs::remove_all(dir_); }

void tiny_world::write_model() const {
  std::vector<tensor_to_write> tensors;
  std::vector<std::vector<float>> values;
  std::uint32_t n_made = 0;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, bool ones = false) {
    std::size_t n = 1;
    for (const auto d : shape)
      n *= std::size_t(d);
    std::vector<float> v(n, 1.0f);
    for (std::size_t i = 0; i < n && !ones; ++i)
      v[i] = (draw_uniform({7, draw::init, 0, n_made, 0, std::uint32_t(i)}) - 0.5f) * 0.25f;
    ++n_made;
    values.push_back(std::move(v));
    tensors.push_back({name, dtype::f32, std::move(shape), {}});
  };
  add("model.embed_tokens.weight", {vocab, hidden});
  for (int i = 0; i < n_layers; ++i) {
    const std::string at = "model.layers." + std::to_string(i) + '.';
    add(at + "input_layernorm.weight", {hidden}, true);
    add(at + "post_attention_layernorm.weight", {hidden}, true);
    add(at + "self_attn.q_proj.weight", {n_heads * head_dim, hidden});
    add(at + "self_attn.k_proj.weight", {n_kv_heads * head_dim, hidden});
    add(at + "self_attn.v_proj.weight", {n_kv_heads * head_dim, hidden});
    add(at + "self_attn.o_proj.weight", {hidden, n_heads * head_dim});
    add(at + "mlp.gate_proj.weight", {intermediate, hidden});
    add(at + "mlp.up_proj.weight", {intermediate, hidden});
    add(at + "mlp.down_proj.weight", {hidden, intermediate});
  }
  add("model.norm.weight", {hidden}, true);
  add("lm_head.weight", {vocab, hidden});
  for (std::size_t i = 0; i < tensors.size(); ++i)
    tensors[i].bytes = std::as_bytes(std::span(values[i]));
  write_safetensors(dir_ / "model", tensors);
  json ends = json::array();
  for (int i = 256; i < vocab; ++i)
    ends.push_back(i);
  const json config = {{"architectures", {"LlamaForCausalLM"}},
                       {"model_type", "llama"},
                       {"vocab_size", vocab},
                       {"hidden_size", hidden},
                       {"intermediate_size", intermediate},
                       {"num_hidden_layers", n_layers},
                       {"num_attention_heads", n_heads},
                       {"num_key_value_heads", n_kv_heads},
                       {"head_dim", head_dim},
                       {"max_position_embeddings", 256},
                       {"rms_norm_eps", 1e-5},
                       {"rope_theta", 10000.0},
                       {"hidden_act", "silu"},
                       {"tie_word_embeddings", false},
                       {"eos_token_id", ends},
                       {"torch_dtype", "float32"}};
  write_file(dir_ / "model" / "config.json", config.dump());
}

void tiny_world::write_tokenizer() const {
  json letters = json::object(), added = json::array();
  for (int b = 0; b < 256; ++b)
    letters[byte_letter(b)] = b;
  for (int i = 256; i < vocab; ++i) {
    added.push_back({{"id", i},
                     {"content", "<end" + std::to_string(i) + ">"},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", added},
                          {"normalizer", nullptr},
                          {"pre_tokenizer", byte_level},
                          {"post_processor", nullptr},
                          {"decoder", byte_level},
                          {"model",
                           {{"type", "BPE"},
                            {"dropout", nullptr},
                            {"unk_token", nullptr},
                            {"continuing_subword_prefix", nullptr},
                            {"end_of_word_suffix", nullptr},
                            {"fuse_unk", false},
                            {"byte_fallback", false},
                            {"ignore_merges", false},
                            {"vocab", letters},
                            {"merges", json::array()}}}};
  write_file(dir_ / "model" / "tokenizer.json", tokenizer.dump());
}

void tiny_world::write_data() const {
  std::string train, val;
  for (int i = 0; i < 40; ++i)
    (i < 34 ? train : val) += json{{"prompt", "say " + std::to_string(i * 37)}, {"answer", ""}}.dump() + '\n';
  write_file(dir_ / "train.jsonl", train);
  write_file(dir_ / "val.jsonl", val);
}

void tiny_world::write_config() const {
  std::ostringstream out;
  // The reward is 1 for an empty text: a sample whose first token ends it.
  out << "[run]\nname = \"tiny\"\nseed = 5\ntotal_steps = " << tiny_steps << "\nsave_freq = 5\ntest_freq = 8\n"
      << "[model]\npath = \"" << (dir_ / "model").string() << "\"\n"
      << "[data]\ntrain_files = [\"" << (dir_ / "train.jsonl").string() << "\"]\nval_files = [\"" << (dir_ / "val.jsonl").string()
      << "\"]\nmax_prompt_length = 16\nmax_response_length = 40\ntrain_batch_size = 8\n"
      << "[rollout]\nn = 8\nmax_num_seqs = 24\n[validation]\nn = 4\ntemperature = 1.0\n"
      << "[reward]\nfunction = \"exact_match\"\n[learner]\nppo_mini_batch_size = 4\n[learner.optim]\nlr = 1e-3\n";
  write_file(config(), out.str());
}

// ---- processes ----

namespace {

/// The test's environment with some variables added or replaced.
std::vector<std::string> environment_with(const std::vector<std::string>& changes) {
  std::vector<std::string> out = changes;
  for (char** e = environ; *e != nullptr; ++e) {
    const std::string_view name = std::string_view(*e).substr(0, std::string_view(*e).find('=') + 1);
    if (std::none_of(changes.begin(), changes.end(), [&](const std::string& c) { return c.starts_with(name); }))
      out.emplace_back(*e);
  }
  return out;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (auto& s : strings)
    out.push_back(s.data());
  out.push_back(nullptr);
  return out;
}

/// In the child; nothing here allocates.
void enter(const surroundings& around) {
  if (around.largest_file > 0) {
    const rlimit most{around.largest_file, around.largest_file};
    setrlimit(RLIMIT_FSIZE, &most);
  }
  if (around.obeys_permissions) {
    prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE); // root's alone; others do not have it, and may not call this
    prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH);
  }
}

} // namespace

program::program(const std::vector<std::string>& arguments, const fs::path& output, const surroundings& around) : output_(output) {
  const std::string out = output.string() + ".out", err = output.string() + ".err";
  std::vector<std::string> words = {TROUPE_PROGRAM}, variables = environment_with(around.environment);
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv = pointers(words), env = pointers(variables);
  pid_ = fork();
  if (pid_ < 0)
    throw std::system_error(errno, std::generic_category(), "fork");
  if (pid_ > 0)
    return;
  dup2(open(around.input.c_str(), O_RDONLY), 0);
  dup2(open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), 1);
  dup2(open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), 2);
  enter(around);
  if (around.instead != nullptr) {
    const int code = around.instead(int(words.size()), argv.data());
    std::fflush(nullptr);
    _exit(code);
  }
  execve(TROUPE_PROGRAM, argv.data(), env.data());
  _exit(127);
}

program::~program() {
  if (running()) {
    kill(pid_, SIGKILL);
    reap(true);
  }
}

void program::signal(int number) const { kill(pid_, number); }

bool program::reap(bool block) {
  if (!ended_ && waitpid(pid_, &status_, block ? 0 : WNOHANG) == pid_)
    ended_ = true;
  return ended_;
}

bool program::running() { return !reap(false); }

int program::wait(std::chrono::seconds at_most) {
  if (!until([&] { return reap(false); }, at_most)) {
    kill(pid_, SIGKILL);
    reap(true);
    return -1;
  }
  return WIFSIGNALED(status_) ? 128 + WTERMSIG(status_) : WEXITSTATUS(status_);
}

std::string program::out() const { return file_bytes(output_.string() + ".out"); }
std::string program::err() const { return file_bytes(output_.string() + ".err"); }

// ---- what a run leaves ----

std::vector<int> recorded_steps(const fs::path& run_dir) {
  std::vector<int> out;
  std::ifstream in(run_dir / "metrics.jsonl");
  for (std::string line; std::getline(in, line) && !in.eof();)
    out.push_back(json::parse(line).at("step").get<int>());
  return out;
}

std::vector<pid_t> joined(const fs::path& run_dir, const std::string& role) {
  std::vector<pid_t> out;
  std::ifstream in(run_dir / "log.txt");
  for (std::string line; std::getline(in, line) && !in.eof();) {
    const auto at = line.find("worker " + role + ' ');
    const auto pid = line.find(" pid ");
    if (at != std::string::npos && pid != std::string::npos)
      out.push_back(pid_t(std::stol(line.substr(pid + 5))));
  }
  return out;
}

std::size_t n_lines(const std::string& text) { return std::size_t(std::count(text.begin(), text.end(), '\n')); }

std::string file_bytes(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string final_weights(const fs::path& run_dir) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%06d", tiny_steps);
  return file_bytes(run_dir / "checkpoints" / name / "model.safetensors");
}

bool alive(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string id, name, state;
  return bool(in >> id >> name >> state) && state != "Z";
}

void pause_briefly() { std::this_thread::sleep_for(std::chrono::milliseconds(5)); }

} // namespace troupe
