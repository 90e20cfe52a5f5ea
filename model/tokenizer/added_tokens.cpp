#include "model/tokenizer/added_tokens.hpp"
#include "core/error.hpp"
#include "model/tokenizer/part_json.hpp"
#include "model/tokenizer/unicode.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>

namespace troupe {
namespace {

added_token read_token(const nlohmann::json& entry, const std::string& where) {
  if (!entry.is_object())
    throw error(errc::bad_input, where + " must be an object");
  part_json::count(entry, "id", (1 << 24) - 1, where);
  added_token t;
  t.content = part_json::text(entry, "content", where);
  t.special = part_json::boolean(entry, "special", false, where);
  t.single_word = part_json::boolean(entry, "single_word", false, where);
  t.lstrip = part_json::boolean(entry, "lstrip", false, where);
  t.rstrip = part_json::boolean(entry, "rstrip", false, where);
  t.normalized = part_json::boolean(entry, "normalized", !t.special, where);
  return t;
}

bool word_ends_at(std::string_view text, std::size_t at) { return at > 0 && unicode::is_word(utf8::previous(text, at)); }
bool word_starts_at(std::string_view text, std::size_t at) { return at < text.size() && unicode::is_word(utf8::next(text, at)); }

std::size_t before_spaces(std::string_view text, std::size_t at) {
  for (std::size_t back = at; back > 0 && unicode::is_space(utf8::previous(text, back));)
    at = back;
  return at;
}

std::size_t behind_spaces(std::string_view text, std::size_t at) {
  for (std::size_t on = at; on < text.size() && unicode::is_space(utf8::next(text, on));)
    at = on;
  return at;
}

} // namespace

void added_tokens::matcher::add(std::string_view content, std::int32_t token) {
  if (id.empty())
    id.push_back(-1);
  if (content.empty())
    return;
  std::uint32_t node = 0;
  for (const char c : content) {
    const auto [it, fresh] =
        next.try_emplace(std::uint64_t(node) << 8 | static_cast<unsigned char>(c), static_cast<std::uint32_t>(id.size()));
    if (fresh)
      id.push_back(-1);
    node = it->second;
  }
  starts[static_cast<unsigned char>(content.front())] = true;
  if (id[node] < 0)
    id[node] = token; // of equal contents the first is found
}

std::pair<std::size_t, std::int32_t> added_tokens::matcher::longest(std::string_view text, std::size_t at) const {
  std::pair<std::size_t, std::int32_t> best{0, -1};
  std::uint32_t node = 0;
  for (std::size_t i = at; i < text.size(); ++i) {
    const auto it = next.find(std::uint64_t(node) << 8 | static_cast<unsigned char>(text[i]));
    if (it == next.end())
      break;
    node = it->second;
    if (id[node] >= 0)
      best = {i + 1 - at, id[node]};
  }
  return best;
}

added_tokens::added_tokens(const nlohmann::json& entries, const bpe& model, const normalizer* normal, const std::string& where) {
  if (entries.is_null())
    return;
  if (!entries.is_array())
    throw error(errc::bad_input, where + ": added_tokens must be an array");
  std::vector<added_token> order;
  for (const auto& entry : entries)
    order.push_back(read_token(entry, where + ": added_tokens[" + std::to_string(order.size()) + "]"));
  for (const auto& token : order)
    if (token.special && !token.content.empty())
      special_.insert(token.content);
  for (const auto& token : order)
    add(token, model);
  // Special tokens come first where two have the same content.
  std::stable_partition(order.begin(), order.end(), [](const added_token& t) { return t.special; });
  for (const auto& token : order) {
    if (token.content.empty())
      continue;
    const auto id = ids_.find(token.content)->second;
    if (token.normalized) {
      // From here on the package knows the token by its normalized text, also in decoding.
      auto content = normal != nullptr ? normal->apply(token.content) : token.content;
      normalized_.add(content, id);
      tokens_[id].content = std::move(content);
    } else {
      raw_.add(token.content, id);
    }
  }
}

void added_tokens::add(const added_token& token, const bpe& model) {
  if (token.content.empty())
    return;
  std::int64_t id = std::max(model.size(), next_id_);
  if (const auto it = ids_.find(token.content); it != ids_.end()) {
    id = it->second;
  } else if (const auto known = model.token_to_id(token.content)) {
    id = *known;
  }
  next_id_ = std::max(next_id_, id + 1);
  ids_[token.content] = static_cast<std::int32_t>(id);
  tokens_[id] = token;
}

const added_token* added_tokens::find(std::int64_t id) const {
  const auto it = tokens_.find(id);
  return it == tokens_.end() ? nullptr : &it->second;
}

std::vector<text_part> added_tokens::split(std::string_view text, const matcher& m) const {
  std::vector<text_part> parts;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto [length, id] =
        m.starts[static_cast<unsigned char>(text[at])] ? m.longest(text, at) : std::pair<std::size_t, std::int32_t>{0, -1};
    if (id < 0) {
      ++at;
      continue;
    }
    std::size_t begin = at, end = at + length;
    at = end;
    const added_token& token = tokens_.at(id);
    if (token.single_word && (word_ends_at(text, begin) || word_starts_at(text, end)))
      continue;
    if (token.lstrip)
      begin = std::max(before_spaces(text, begin), done);
    if (token.rstrip)
      end = behind_spaces(text, end);
    if (done < begin)
      parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({text.substr(begin, end - begin), id});
    done = end;
  }
  if (done < text.size())
    parts.push_back({text.substr(done), -1});
  return parts;
}

} // namespace troupe
