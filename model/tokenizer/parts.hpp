#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

// The parts that tokenizer.json is put together from. Each kind has a table from "type" to a reader (normalizers.cpp,
// pre_tokenizers.cpp, decoders.cpp, post_processors.cpp): adding a part is a class and a line there.
// All are immutable once read; any thread. Readers throw errc::bad_input and errc::unsupported, naming the part.

class normalizer {
public:
  virtual ~normalizer() = default;
  virtual std::string apply(std::string text) const = 0;
  /// Whether its text begins where the text it was given begins, and nothing else of it does (Metaspace asks).
  virtual bool keeps_start() const { return false; }
};

struct piece {
  std::string_view text;
  bool at_start; // of the whole text that is encoded
};

/// Pieces of one text, in order; `storage` owns what a step wrote anew.
struct piece_list {
  std::vector<piece> pieces;
  std::deque<std::string> storage;
};

class pre_tokenizer {
public:
  virtual ~pre_tokenizer() = default;
  virtual void split(piece_list& list) const = 0;
  /// Whether it asks if a piece is `at_start`.
  virtual bool needs_start() const { return false; }
  /// Whether it changes text, beyond splitting it.
  virtual bool writes() const { return false; }
};

/// Takes tokens one by one, a token in one or more parts. One thread.
class token_sink {
public:
  virtual ~token_sink() = default;
  /// begins, ends: whether the part is its token's first, its last.
  virtual void put(std::string_view part, bool begins, bool ends) = 0;
  /// No more tokens come.
  virtual void finish() = 0;
};

class decoder {
public:
  virtual ~decoder() = default;
  /// What decodes one list of tokens: `next`, which outlives it, is given what is certain as soon as it is.
  virtual std::unique_ptr<token_sink> begin(token_sink& next) const = 0;
};

/// What a post-processor may write around a text's ids.
class post_processor {
public:
  virtual ~post_processor() = default;
  virtual std::vector<std::int32_t> apply(std::vector<std::int32_t> ids) const = 0;
};

// `part` is the JSON of the part or null, for which null is returned; `where` is the file and the part's place in it.
std::unique_ptr<normalizer> read_normalizer(const nlohmann::json& part, const std::string& where);
std::unique_ptr<pre_tokenizer> read_pre_tokenizer(const nlohmann::json& part, const std::string& where);
std::unique_ptr<decoder> read_decoder(const nlohmann::json& part, const std::string& where);
std::unique_ptr<post_processor> read_post_processor(const nlohmann::json& part, const std::string& where);

/// The bytes that a token of byte-level characters stands for; its own bytes when one of its characters stands for none.
void append_byte_level(std::string& bytes, std::string_view token);

} // namespace troupe
