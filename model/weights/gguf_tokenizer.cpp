#include "model/weights/gguf_tokenizer.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/tokenizer/bpe_json.hpp"
#include "model/weights/json.hpp"
#include <algorithm>
#include <cmath>
#include <tuple>
#include <unordered_map>

namespace troupe {

namespace {

using json = nlohmann::json;

// llama.cpp's token types.
constexpr std::int64_t unknown_token = 2, control_token = 3, user_defined_token = 4, unused_token = 5, byte_token = 6;
// SentencePiece's stand-in for a space.
constexpr const char* space = "\u2581";

/// Llama 2's kind: pieces of SentencePiece's BPE, with scores in place of merges.
bool is_sentencepiece(const gguf_reader& file) { return file.text("tokenizer.ggml.model") == "llama"; }

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}
json sequence(json first) { return {{"type", "Sequence"}, {"pretokenizers", {std::move(first), byte_level(false)}}}; }
json split(const char* pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

// What each value of `tokenizer.ggml.pre` stands for, from the tokenizer.json of the models that llama.cpp gave the name to.
json smollm_pre() {
  return {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, byte_level(true)}}};
}
json gpt2_pre() { return byte_level(true); }
json llama3_pre() {
  return sequence(
      split(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"));
}
json qwen2_pre() {
  return sequence(
      split(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"));
}

json tekken_pre() {
  return sequence(split(R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                        R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                        R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"));
}

struct pre_entry {
  const char* name;
  json (*pre_tokenizer)();
  bool nfc;           // normaliser NFC
  bool ignore_merges; // a whole word that is in the vocabulary is one token
  bool add_bos;       // where `tokenizer.ggml.add_bos_token` is absent
};

constexpr pre_entry known_pre[] = {
    {"smollm", smollm_pre, false, false, false}, {"gpt-2", gpt2_pre, false, false, false},  {"llama-bpe", llama3_pre, false, true, true},
    {"llama-v3", llama3_pre, false, true, true}, {"llama3", llama3_pre, false, true, true}, {"qwen2", qwen2_pre, true, false, false},
    {"tekken", tekken_pre, false, true, true},
};

const pre_entry& pre_of(const gguf_reader& file) {
  const auto model = file.text("tokenizer.ggml.model");
  if (!model)
    file.refuse("has no tokenizer: key \"tokenizer.ggml.model\" is missing");
  if (*model != "gpt2")
    throw error(errc::unsupported, file.path().string() + ": tokenizer.ggml.model = " + in_quotes(*model) +
                                       ": this version knows gpt2 (byte-level BPE) and llama (SentencePiece's BPE)");
  const auto name = file.text("tokenizer.ggml.pre");
  if (!name)
    file.refuse("key \"tokenizer.ggml.pre\" is missing: how text is split into words is not known");
  std::string names;
  for (const auto& entry : known_pre) {
    if (*name == entry.name)
      return entry;
    (names += names.empty() ? "" : ", ") += entry.name;
  }
  throw error(errc::unsupported, file.path().string() + ": tokenizer.ggml.pre = " + in_quotes(*name) + ": this version knows " + names);
}

/// Tokens, their types and their ids, checked.
struct vocabulary {
  std::vector<std::string_view> tokens;
  std::vector<std::int64_t> types;
  std::unordered_map<std::string_view, std::size_t> ids;
};

vocabulary read_vocabulary(const gguf_reader& file) {
  vocabulary all;
  auto tokens = file.texts("tokenizer.ggml.tokens");
  if (!tokens || tokens->empty())
    file.refuse("key \"tokenizer.ggml.tokens\" is missing or empty");
  all.tokens = std::move(*tokens);
  all.types = file.integers("tokenizer.ggml.token_type").value_or(std::vector<std::int64_t>(all.tokens.size(), 1));
  if (all.types.size() != all.tokens.size())
    file.refuse("tokenizer.ggml.token_type has " + std::to_string(all.types.size()) + " entries, tokenizer.ggml.tokens " +
                std::to_string(all.tokens.size()));
  for (std::size_t id = 0; id < all.tokens.size(); ++id) {
    if (!is_utf8(all.tokens[id]))
      file.refuse("tokenizer.ggml.tokens: token " + std::to_string(id) + " is not UTF-8");
    if (const auto [first, fresh] = all.ids.emplace(all.tokens[id], id); !fresh)
      file.refuse("tokenizer.ggml.tokens: " + in_quotes(all.tokens[id]) + " is both token " + std::to_string(first->second) + " and " +
                  std::to_string(id));
  }
  return all;
}

/// Merges as pairs; both parts and what they make must be tokens.
json merges_of(const gguf_reader& file, const vocabulary& vocab) {
  const auto merges = file.texts("tokenizer.ggml.merges");
  if (!merges)
    file.refuse("key \"tokenizer.ggml.merges\" is missing");
  json pairs = json::array();
  for (std::size_t i = 0; i < merges->size(); ++i) {
    const auto merge = (*merges)[i];
    const auto space = merge.find(' ', 1);
    if (space == std::string_view::npos)
      file.refuse("tokenizer.ggml.merges: entry " + std::to_string(i) + ", " + in_quotes(merge) + ", is not two parts");
    const auto left = merge.substr(0, space), right = merge.substr(space + 1);
    std::string made(left);
    made += right;
    for (const auto part : {left, right, std::string_view(made)})
      if (!vocab.ids.contains(part))
        file.refuse("tokenizer.ggml.merges: entry " + std::to_string(i) + ", " + in_quotes(merge) + ": " + in_quotes(part) +
                    " is not a token");
    pairs.push_back({left, right});
  }
  return pairs;
}

json added_tokens_of(const vocabulary& vocab) {
  json added = json::array();
  for (std::size_t id = 0; id < vocab.tokens.size(); ++id)
    if (vocab.types[id] == control_token || vocab.types[id] == user_defined_token || vocab.types[id] == unknown_token)
      added.push_back({{"id", id},
                       {"content", vocab.tokens[id]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", vocab.types[id] != user_defined_token}});
  return added;
}

/// The template that puts bos before and eos after a text; null when neither is asked for.
json post_processor_of(const gguf_reader& file, const vocabulary& vocab, bool add_bos, bool add_eos) {
  json single = json::array(), pair = json::array(), specials = json::object();
  const auto put = [&](const char* role, json& list, int type_id) {
    const auto id = gguf_token_id(file, role);
    if (!id)
      file.refuse(std::string("tokenizer.ggml.add_") + role + "_token is true, but tokenizer.ggml." + role + "_token_id is missing");
    const auto token = std::string(vocab.tokens[std::size_t(*id)]);
    list.push_back({{"SpecialToken", {{"id", token}, {"type_id", type_id}}}});
    specials[token] = {{"id", token}, {"ids", {*id}}, {"tokens", {token}}};
  };
  const auto put_text = [&](json& list, const char* name, int type_id) {
    if (add_bos)
      put("bos", list, type_id);
    list.push_back({{"Sequence", {{"id", name}, {"type_id", type_id}}}});
    if (add_eos)
      put("eos", list, type_id);
  };
  if (!add_bos && !add_eos)
    return nullptr;
  put_text(single, "A", 0);
  put_text(pair, "A", 0);
  put_text(pair, "B", 1);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
}

json tokenizer_json(const gguf_reader& file, const pre_entry& pre, const vocabulary& vocab) {
  json ids = json::object();
  for (std::size_t id = 0; id < vocab.tokens.size(); ++id)
    ids[std::string(vocab.tokens[id])] = id;
  const bool add_bos = file.flag("tokenizer.ggml.add_bos_token").value_or(pre.add_bos);
  const bool add_eos = file.flag("tokenizer.ggml.add_eos_token").value_or(false);
  return tokenizer_json_of({.added_tokens = added_tokens_of(vocab),
                            .normalizer = pre.nfc ? json{{"type", "NFC"}} : json(nullptr),
                            .pre_tokenizer = pre.pre_tokenizer(),
                            .post_processor = post_processor_of(file, vocab, add_bos, add_eos),
                            .decoder = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}},
                            .unk_token = nullptr,
                            .byte_fallback = false,
                            .ignore_merges = pre.ignore_merges,
                            .vocab = std::move(ids),
                            .merges = merges_of(file, vocab)});
}

/// How SentencePiece puts its pieces together: the best score first, then (Transformers' order) the longest left part. Pieces that stand
/// for themselves are never put together.
json merges_by_score(const gguf_reader& file, const vocabulary& vocab) {
  const auto scores = file.floats("tokenizer.ggml.scores");
  if (!scores || scores->size() != vocab.tokens.size())
    file.refuse("tokenizer.ggml.scores must have one number for each of the " + std::to_string(vocab.tokens.size()) + " tokens");
  struct merge {
    float score;
    std::size_t left_length, right_length; // in characters
    std::string_view left, right;
  };
  const auto starts = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; };
  const auto length = [&](std::string_view s) { return std::size_t(std::count_if(s.begin(), s.end(), starts)); };
  const auto mergeable = [&](std::string_view piece) {
    const auto found = vocab.ids.find(piece);
    if (found == vocab.ids.end())
      return false;
    const auto type = vocab.types[found->second];
    return type != unknown_token && type != control_token && type != unused_token && type != byte_token;
  };
  std::vector<merge> merges;
  for (std::size_t id = 0; id < vocab.tokens.size(); ++id) {
    const std::string_view whole = vocab.tokens[id];
    if (!std::isfinite((*scores)[id]))
      file.refuse("tokenizer.ggml.scores: number " + std::to_string(id) + " is not finite");
    if (!mergeable(whole) || vocab.types[id] == user_defined_token)
      continue;
    for (std::size_t at = 1; at < whole.size(); ++at)
      if (starts(whole[at]) && mergeable(whole.substr(0, at)) && mergeable(whole.substr(at)))
        merges.push_back({(*scores)[id], length(whole.substr(0, at)), length(whole.substr(at)), whole.substr(0, at), whole.substr(at)});
  }
  std::stable_sort(merges.begin(), merges.end(), [](const merge& a, const merge& b) {
    return std::tie(a.score, a.left_length, a.right_length) > std::tie(b.score, b.left_length, b.right_length);
  });
  json pairs = json::array();
  for (const auto& m : merges)
    pairs.push_back({m.left, m.right});
  return pairs;
}

/// As Llama 2's own tokenizer.json: a space in front of every stretch of text, bytes for what is no piece.
json sentencepiece_json(const gguf_reader& file, const vocabulary& vocab) {
  json ids = json::object(), unknown = nullptr;
  for (std::size_t id = 0; id < vocab.tokens.size(); ++id) {
    ids[std::string(vocab.tokens[id])] = id;
    if (vocab.types[id] == unknown_token)
      unknown = vocab.tokens[id];
  }
  const bool prefix = file.flag("tokenizer.ggml.add_space_prefix").value_or(true);
  const json spaces = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", space}};
  json normalizers = json::array();
  if (prefix)
    normalizers.push_back({{"type", "Prepend"}, {"prepend", space}});
  normalizers.push_back(spaces);
  const bool add_bos = file.flag("tokenizer.ggml.add_bos_token").value_or(true);
  const bool add_eos = file.flag("tokenizer.ggml.add_eos_token").value_or(false);
  return tokenizer_json_of({.added_tokens = added_tokens_of(vocab),
                            .normalizer = {{"type", "Sequence"}, {"normalizers", normalizers}},
                            .pre_tokenizer = nullptr,
                            .post_processor = post_processor_of(file, vocab, add_bos, add_eos),
                            .decoder = sentencepiece_decoder(prefix),
                            .unk_token = unknown,
                            .byte_fallback = true,
                            .ignore_merges = false,
                            .vocab = std::move(ids),
                            .merges = merges_by_score(file, vocab)});
}

json tokenizer_config_json(const gguf_reader& file, const vocabulary& vocab) {
  // Transformers rebuilds the pre-tokenizer of every other class, and loses parts of it.
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  if (const auto length = file.integer(std::string(file.text("general.architecture").value_or("")) + ".context_length"))
    config["model_max_length"] = *length;
  constexpr std::pair<const char*, const char*> roles[] = {
      {"bos", "bos_token"}, {"eos", "eos_token"}, {"unknown", "unk_token"}, {"padding", "pad_token"}};
  for (const auto& [role, key] : roles)
    if (const auto id = gguf_token_id(file, role))
      config[key] = vocab.tokens[std::size_t(*id)];
  json added = json::object();
  for (auto token : added_tokens_of(vocab)) {
    const auto id = token["id"].get<std::size_t>();
    token.erase("id");
    added[std::to_string(id)] = std::move(token);
  }
  config["added_tokens_decoder"] = std::move(added);
  return config;
}

} // namespace

std::optional<std::int64_t> gguf_token_id(const gguf_reader& file, const std::string& role) {
  const auto key = "tokenizer.ggml." + role + "_token_id";
  const auto id = file.integer(key);
  const auto tokens = file.metadata().find("tokenizer.ggml.tokens");
  const auto n_tokens = tokens == file.metadata().end() ? 0 : tokens->second.count;
  if (id && (*id < 0 || std::uint64_t(*id) >= n_tokens))
    file.refuse(key + " = " + std::to_string(*id) + ", but there are " + std::to_string(n_tokens) + " tokens");
  return id;
}

void write_gguf_tokenizer(const gguf_reader& file, const std::filesystem::path& dir) {
  const pre_entry* pre = is_sentencepiece(file) ? nullptr : &pre_of(file);
  const auto vocab = read_vocabulary(file);
  write_file(dir / "tokenizer.json", (pre ? tokenizer_json(file, *pre, vocab) : sentencepiece_json(file, vocab)).dump(1) + "\n");
  write_file(dir / "tokenizer_config.json", tokenizer_config_json(file, vocab).dump(2) + "\n");
  if (const auto source = file.text("tokenizer.chat_template")) {
    if (!is_utf8(*source))
      file.refuse("tokenizer.chat_template is not UTF-8");
    write_file(dir / "chat_template.jinja", *source);
  }
}

} // namespace troupe
