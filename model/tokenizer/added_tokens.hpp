#pragma once
#include "model/tokenizer/bpe.hpp"
#include "model/tokenizer/parts.hpp"
#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace troupe {

struct added_token {
  std::string content;
  bool single_word = false, lstrip = false, rstrip = false, normalized = true, special = false;
};

/// A stretch of a text: an added token when `id` is not negative, else text between them.
struct text_part {
  std::string_view text;
  std::int32_t id;
};

/// tokenizer.json's "added_tokens": found in a text before the model sees it. Immutable once read; any thread.
class added_tokens {
public:
  /// entries: the JSON array, or null. Ids are those that the package gives: the model's for a token that it has, else the next free.
  added_tokens(const nlohmann::json& entries, const bpe& model, const normalizer* normal, const std::string& where);

  /// The tokens that stand in the text as it came, and those that stand in normalized text.
  std::vector<text_part> split_raw(std::string_view text) const { return split(text, raw_); }
  std::vector<text_part> split_normalized(std::string_view text) const { return split(text, normalized_); }

  /// Null when the id is no added token's.
  const added_token* find(std::int64_t id) const;
  const string_ids& ids() const { return ids_; }
  std::int64_t id_limit() const { return next_id_; }
  bool is_special(std::string_view token) const { return special_.contains(token); }

private:
  // All contents as one tree of bytes; node 0 is the root.
  struct matcher {
    std::unordered_map<std::uint64_t, std::uint32_t> next; // (node, byte) -> node
    std::vector<std::int32_t> id;                          // a node's token; -1: none
    std::array<bool, 256> starts{};
    void add(std::string_view content, std::int32_t token);
    std::pair<std::size_t, std::int32_t> longest(std::string_view text, std::size_t at) const;
  };
  std::vector<text_part> split(std::string_view text, const matcher& m) const;
  void add(const added_token& token, const bpe& model);

  string_ids ids_;
  std::int64_t next_id_ = 0; // above all of ids_
  std::map<std::int64_t, added_token> tokens_;
  std::set<std::string, std::less<>> special_;
  matcher raw_, normalized_;
};

} // namespace troupe
