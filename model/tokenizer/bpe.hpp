#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace troupe {

/// Lets a map of strings be asked with a string_view.
struct string_hash {
  using is_transparent = void;
  std::size_t operator()(std::string_view s) const noexcept { return std::hash<std::string_view>{}(s); }
};
using string_ids = std::unordered_map<std::string, std::int32_t, string_hash, std::equal_to<>>;

/// Byte-pair encoding as the `tokenizers` package's model BPE does it. Immutable once read; any thread.
class bpe {
public:
  /// model: tokenizer.json's "model". Throws errc::bad_input and errc::unsupported; `where` stands in messages.
  bpe(const nlohmann::json& model, const std::string& where);

  /// Appends the ids of one piece (well-formed UTF-8).
  void encode(std::string_view piece, std::vector<std::int32_t>& ids) const;
  std::optional<std::int32_t> token_to_id(std::string_view token) const;
  /// Null when no token has the id.
  const std::string* id_to_token(std::int64_t id) const;
  std::int64_t size() const { return static_cast<std::int64_t>(vocab_.size()); } // tokens, which may leave ids out
  std::int64_t id_limit() const { return static_cast<std::int64_t>(tokens_.size()); }
  bool byte_fallback() const { return byte_fallback_; }

private:
  struct merge {
    std::int32_t rank, id;
  };
  void read_vocab(const nlohmann::json& vocab, const std::string& where);
  void read_merges(const nlohmann::json& merges, const std::string& where);
  void put_merge(std::uint64_t pair, merge m);
  const merge* find_merge(std::int32_t left, std::int32_t right) const;
  void split_characters(std::string_view piece, std::vector<std::int32_t>& symbols) const;
  bool append_bytes(std::string_view character, std::vector<std::int32_t>& symbols) const;
  void merge_all(std::vector<std::int32_t>& symbols) const;

  string_ids vocab_;
  std::vector<std::string> tokens_;
  std::vector<char> present_;
  std::vector<std::int32_t> short_ids_;  // by character below U+0800; -1: no token
  std::vector<std::uint64_t> pair_keys_; // open addressing; empty_pair marks a free place
  std::vector<merge> pair_values_;
  std::vector<std::int32_t> byte_ids_; // of "<0x00>" ...; -1: none
  std::optional<std::int32_t> unknown_;
  std::string prefix_, suffix_; // of what stands inside a piece, of what ends it
  bool fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;
  std::uint64_t serial_; // names this model in the threads' caches
};

} // namespace troupe
