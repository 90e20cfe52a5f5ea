#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// A Hugging Face `tokenizer.json`: the same ids and text as the `tokenizers` package. Immutable; any thread.
class tokenizer {
public:
  /// Reads `dir/tokenizer.json`, or `dir/tokenizer.model` where there is none. Throws errc::bad_input (file, what) and errc::unsupported
  /// naming the part (e.g. "model Unigram").
  static std::shared_ptr<const tokenizer> load(const std::filesystem::path& dir);
  /// The same from the file's text; `name` stands in messages.
  static std::shared_ptr<const tokenizer> parse(std::string_view json_text, const std::string& name);
  ~tokenizer();

  /// text: UTF-8 (else errc::bad_input). add_special_tokens: run the post-processor's template.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens) const;
  /// Bytes that are not UTF-8 become U+FFFD; ids out of range are skipped, as the package does.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const;
  std::int64_t vocab_size() const; // with added tokens
  std::optional<std::int32_t> token_to_id(std::string_view token) const;
  std::string id_to_token(std::int32_t id) const; // empty when there is none
  bool is_special(std::int32_t id) const;

private:
  friend class incremental_decoder;
  tokenizer();
  struct impl;
  std::unique_ptr<impl> impl_;
};

/// Decodes token by token without ever emitting half a character. One thread.
class incremental_decoder {
public:
  incremental_decoder(std::shared_ptr<const tokenizer> tok, bool skip_special_tokens);
  ~incremental_decoder();
  /// Text that became certain with this token; all pieces and finish() joined are decode() of all ids.
  std::string add(std::int32_t id);
  /// The rest; nothing is added behind it.
  std::string finish();

private:
  struct state;
  std::unique_ptr<state> state_;
  bool skip_;
};

} // namespace troupe
