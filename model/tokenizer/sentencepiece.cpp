#include "model/tokenizer/sentencepiece.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/tokenizer/bpe_json.hpp"
#include "model/tokenizer/part_json.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <limits>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

namespace troupe {
namespace {

using json = nlohmann::json;

constexpr std::string_view space = "\xE2\x96\x81"; // U+2581, which stands for a space
constexpr std::size_t max_piece = 4096;

// The fields of one protobuf message, in order. The library that has SentencePiece's own reader brings a protobuf of another
// version than libprotobuf along and exports it, so that no program can link both.
class message {
public:
  message(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  struct field {
    std::uint64_t number, whole = 0; // whole: of a varint
    std::string_view bytes;          // of a string or message
  };

  std::optional<field> next() {
    if (bytes_.empty())
      return std::nullopt;
    const auto tag = varint();
    field out{tag >> 3, 0, {}};
    switch (tag & 7) {
    case 0:
      out.whole = varint();
      break;
    case 1:
      take(8);
      break;
    case 2:
      out.bytes = take(varint());
      break;
    case 5:
      take(4);
      break;
    default:
      fail();
    }
    return out;
  }

  [[noreturn]] void fail() const {
    throw error(errc::bad_input, name_ + ": not a SentencePiece model: its fields end within one, or are of no known kind");
  }

private:
  std::uint64_t varint() {
    std::uint64_t out = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      out |= std::uint64_t(byte & 0x7F) << shift;
      if (byte < 0x80)
        return out;
    }
    fail();
  }

  std::string_view take(std::uint64_t n) {
    if (n > bytes_.size())
      fail();
    const auto out = bytes_.substr(0, n);
    bytes_.remove_prefix(n);
    return out;
  }

  std::string_view bytes_;
  const std::string& name_;
};

enum class piece_type : std::uint8_t { normal = 1, unknown, control, user_defined, unused, byte };

struct sentencepiece_file {
  std::vector<std::string> pieces;
  std::vector<piece_type> types;
  std::unordered_map<std::string_view, std::int32_t> ids; // of pieces
};

void read_piece(sentencepiece_file& file, std::string_view bytes, const std::string& name) {
  std::string text;
  std::uint64_t type = 1;
  message m(bytes, name);
  while (const auto f = m.next())
    if (f->number == 1)
      text = f->bytes;
    else if (f->number == 3)
      type = f->whole;
  const std::string place = name + ": piece " + std::to_string(file.pieces.size());
  if (utf8::find_invalid(text) != std::string_view::npos || text.size() > max_piece)
    throw error(errc::bad_input, place + " is not UTF-8, or has more than " + std::to_string(max_piece) + " bytes");
  if (type < 1 || type > 6)
    throw error(errc::bad_input, place + " has the type " + std::to_string(type) + "; 1 to 6 are known");
  file.pieces.push_back(std::move(text));
  file.types.push_back(static_cast<piece_type>(type));
}

std::uint64_t number_in(std::string_view bytes, std::uint64_t number, std::uint64_t otherwise, const std::string& name) {
  message m(bytes, name);
  while (const auto f = m.next())
    if (f->number == number)
      otherwise = f->whole;
  return otherwise;
}

bool has_rules(std::string_view normalizer, const std::string& name) {
  bool found = false;
  message m(normalizer, name);
  while (const auto f = m.next())
    found |= f->number == 2 && !f->bytes.empty();
  return found;
}

sentencepiece_file read_model(std::string_view bytes, const std::string& name) {
  sentencepiece_file file;
  std::uint64_t kind = 1;
  message m(bytes, name);
  while (const auto f = m.next()) {
    if (f->number == 1)
      read_piece(file, f->bytes, name);
    else if (f->number == 2)
      kind = number_in(f->bytes, 3, 1, name);
    else if (f->number == 3 && has_rules(f->bytes, name))
      throw error(errc::unsupported, name + ": SentencePiece with normalization rules (a precompiled_charsmap) is not supported");
  }
  if (file.pieces.empty())
    throw error(errc::bad_input,
                name + ": not a SentencePiece model: it holds no pieces (Llama 3's tokenizer.model is none; use its tokenizer.json)");
  if (kind != 2)
    throw error(errc::unsupported,
                name + ": SentencePiece of model_type " + (kind == 1 ? "unigram" : std::to_string(kind)) + " is not supported; bpe is");
  for (std::size_t i = 0; i < file.pieces.size(); ++i)
    if (!file.ids.emplace(file.pieces[i], std::int32_t(i)).second)
      throw error(errc::bad_input, name + ": the piece \"" + file.pieces[i] + "\" is there twice");
  return file;
}

// Every way to put a piece together from two others, by the piece's id, then by the length of the first.
json merges_of(const sentencepiece_file& file) {
  json out = json::array();
  for (const std::string_view whole : file.pieces)
    for (std::size_t at = 0; at < whole.size();) {
      utf8::next(whole, at);
      if (at < whole.size() && file.ids.contains(whole.substr(0, at)) && file.ids.contains(whole.substr(at)))
        out.push_back({whole.substr(0, at), whole.substr(at)});
    }
  return out;
}

class converter {
public:
  converter(const sentencepiece_file& file, const json& config, const std::string& name)
      : file_(file), config_(config), where_(name + " with tokenizer_config.json") {}

  json convert() {
    const auto kind = config_.value("tokenizer_class", json("LlamaTokenizer"));
    if (kind != "LlamaTokenizer" && kind != "LlamaTokenizerFast")
      throw error(errc::unsupported, where_ + ": tokenizer_class " + part_json::brief(kind) + " is not supported; LlamaTokenizer is");
    add_tokens();
    const bool prefix = part_json::boolean(config_, "add_prefix_space", true, where_);
    const bool legacy = part_json::boolean(config_, "legacy", false, where_);
    json vocab = json::object();
    for (std::size_t i = 0; i < file_.pieces.size(); ++i)
      vocab[file_.pieces[i]] = i;
    const json pre_tokenizer = {{"type", "Metaspace"},
                                {"replacement", space},
                                {"prepend_scheme", !prefix  ? "never"
                                                   : legacy ? "always"
                                                            : "first"},
                                {"split", false}};
    return tokenizer_json_of({.added_tokens = added_,
                              .normalizer = nullptr,
                              .pre_tokenizer = pre_tokenizer,
                              .post_processor = post_processor(),
                              .decoder = sentencepiece_decoder(prefix),
                              .unk_token = nullptr,
                              .byte_fallback = true,
                              .ignore_merges = false,
                              .vocab = std::move(vocab),
                              .merges = merges_of(file_)});
  }

private:
  void add(const std::string& content, const json& flags, bool is_special) {
    if (content.empty() || !known_.insert(content).second)
      return;
    const auto it = file_.ids.find(content);
    json token = {{"id", it != file_.ids.end() ? std::size_t(it->second) : next_++}, {"content", content}, {"special", is_special}};
    for (const char* key : {"single_word", "lstrip", "rstrip", "normalized"})
      token[key] = flags.is_object() && part_json::boolean(flags, key, false, where_);
    added_.push_back(std::move(token));
  }

  void add_entry(const json& entry, const std::string& key) {
    if (entry.is_string())
      return add(entry.get<std::string>(), nullptr, true);
    if (!entry.is_object())
      throw error(errc::bad_input, where_ + ": " + key + " must be a string or an object with its content");
    add(part_json::text(entry, "content", where_ + ": " + key), entry, part_json::boolean(entry, "special", true, where_));
  }

  // A special token's text: the configuration's, null there for none, or LlamaTokenizer's own.
  std::optional<std::string> special(const std::string& key, const char* otherwise) const {
    const auto it = config_.find(key);
    if (it == config_.end())
      return otherwise;
    if (it->is_null())
      return std::nullopt;
    return it->is_string() ? it->get<std::string>() : part_json::text(*it, "content", where_ + ": " + key);
  }

  void add_tokens() {
    if (const auto it = config_.find("added_tokens_decoder"); it != config_.end() && it->is_object()) {
      std::vector<std::pair<long long, const json*>> entries;
      for (const auto& [id, entry] : it->items())
        entries.emplace_back(std::strtoll(id.c_str(), nullptr, 10), &entry);
      std::sort(entries.begin(), entries.end());
      for (const auto& [id, entry] : entries) {
        if (!entry->is_object())
          throw error(errc::bad_input, where_ + ": added_tokens_decoder must hold objects");
        add(part_json::text(*entry, "content", where_ + ": added_tokens_decoder"), *entry,
            part_json::boolean(*entry, "special", false, where_));
      }
    }
    for (const auto& [key, own] : {std::pair{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}})
      if (config_.contains(key) && config_[key].is_object())
        add_entry(config_[key], key);
      else if (const auto text = special(key, own))
        add(*text, nullptr, true);
    for (const char* key : {"sep_token", "pad_token", "cls_token", "mask_token"})
      if (config_.contains(key) && !config_[key].is_null())
        add_entry(config_[key], key);
    for (const char* key : {"additional_special_tokens", "extra_special_tokens"})
      if (config_.contains(key) && config_[key].is_array())
        for (const auto& entry : config_[key])
          add_entry(entry, key);
    // Transformers puts the model's own in the list of the same name, which the configuration's replaces.
    const bool replaced = config_.contains("additional_special_tokens") || config_.contains("extra_special_tokens");
    for (std::size_t i = 0; i < file_.pieces.size() && !replaced; ++i)
      if (file_.types[i] == piece_type::control || file_.types[i] == piece_type::user_defined)
        add(file_.pieces[i], nullptr, file_.types[i] == piece_type::control);
    // The ids that the package gives: of tokens that the model has not, in this order.
    std::stable_sort(added_.begin(), added_.end(), [](const json& a, const json& b) { return a["id"] < b["id"]; });
  }

  json post_processor() const {
    json single = json::array(), specials = json::object();
    const auto put = [&](const char* flag, const char* key, const char* own) {
      const auto text = special(key, own);
      if (!text || !part_json::boolean(config_, flag, false, where_))
        return;
      const auto it = std::find_if(added_.begin(), added_.end(), [&](const json& token) { return token["content"] == *text; });
      single.push_back({{"SpecialToken", {{"id", *text}, {"type_id", 0}}}});
      specials[*text] = {{"id", *text}, {"ids", {(*it)["id"]}}, {"tokens", {*text}}};
    };
    put("add_bos_token", "bos_token", "<s>");
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    put("add_eos_token", "eos_token", "</s>");
    return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", json::array()}, {"special_tokens", specials}};
  }

  const sentencepiece_file& file_;
  const json& config_;
  std::string where_;
  json added_ = json::array();
  std::set<std::string> known_;
  std::size_t next_ = file_.pieces.size();
};

json read_config(const std::filesystem::path& file) { return is_there(file) ? part_json::object_in(file) : json::object(); }

} // namespace

nlohmann::json sentencepiece_tokenizer(std::string_view model, const nlohmann::json& config, const std::string& name) {
  const auto file = read_model(model, name);
  return converter(file, config, name).convert();
}

std::string tokenizer_json(const std::filesystem::path& dir) {
  const auto model = dir / "tokenizer.model";
  if (is_there(dir / "tokenizer.json") || !is_there(model))
    return read_model_file(dir / "tokenizer.json");
  return sentencepiece_tokenizer(read_model_file(model), read_config(dir / "tokenizer_config.json"), model.string()).dump();
}

} // namespace troupe
