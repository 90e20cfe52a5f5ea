#include "model/tokenizer/bpe.hpp"
#include "core/error.hpp"
#include "model/tokenizer/part_json.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdio>
#include <queue>

namespace troupe {
namespace {

constexpr std::uint64_t empty_pair = ~std::uint64_t{0};
constexpr std::int64_t max_id = std::int64_t{1} << 24; // more than any vocabulary; keeps a lying id from asking for memory
constexpr char32_t short_limit = 0x800;
constexpr std::size_t cache_words = 1 << 14, cached_length = 64;

std::uint64_t mix(std::uint64_t x) noexcept {
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15ull;
  return x ^ x >> 29;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) noexcept {
  return std::uint64_t(std::uint32_t(left)) << 32 | std::uint32_t(right);
}

// A thread's words of the model it used last.
struct word_cache {
  std::uint64_t owner = 0;
  std::unordered_map<std::string, std::vector<std::int32_t>, string_hash, std::equal_to<>> words;
};
thread_local word_cache cache;

std::pair<std::string, std::string> merge_parts(const nlohmann::json& entry, std::size_t index, const std::string& where) {
  const std::string place = where + ": model.merges[" + std::to_string(index) + "]";
  if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string())
    return {entry[0].get<std::string>(), entry[1].get<std::string>()};
  if (!entry.is_string())
    throw error(errc::bad_input, place + " must be \"a b\" or [\"a\", \"b\"]");
  const auto text = entry.get<std::string>();
  const auto space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
    throw error(errc::bad_input, place + " must be two tokens with one space between, not \"" + text + "\"");
  return {text.substr(0, space), text.substr(space + 1)};
}

} // namespace

bpe::bpe(const nlohmann::json& model, const std::string& where) {
  static std::atomic<std::uint64_t> serials{0};
  serial_ = ++serials;
  if (const auto it = model.find("dropout"); it != model.end() && !it->is_null() && *it != 0.0)
    throw error(errc::unsupported, where + ": model BPE with dropout " + part_json::brief(*it) + " is not supported");
  for (const auto& [key, affix] : {std::pair{"continuing_subword_prefix", &prefix_}, {"end_of_word_suffix", &suffix_}})
    if (model.contains(key) && !model[key].is_null())
      *affix = part_json::text(model, key, where + ": model");
  fuse_unknown_ = part_json::boolean(model, "fuse_unk", false, where + ": model");
  byte_fallback_ = part_json::boolean(model, "byte_fallback", false, where + ": model");
  ignore_merges_ = part_json::boolean(model, "ignore_merges", false, where + ": model");
  if (!model.contains("vocab") || !model["vocab"].is_object())
    throw error(errc::bad_input, where + ": model.vocab must be an object of tokens and ids");
  read_vocab(model["vocab"], where);
  if (!model.contains("merges") || !model["merges"].is_array())
    throw error(errc::bad_input, where + ": model.merges must be an array");
  read_merges(model["merges"], where);
  if (const auto it = model.find("unk_token"); it != model.end() && !it->is_null()) {
    if (!it->is_string())
      throw error(errc::bad_input, where + ": model.unk_token must be a string, not " + part_json::brief(*it));
    unknown_ = token_to_id(it->get<std::string>());
    if (!unknown_)
      throw error(errc::bad_input, where + ": model.unk_token \"" + it->get<std::string>() + "\" is not in model.vocab");
  }
}

void bpe::read_vocab(const nlohmann::json& vocab, const std::string& where) {
  vocab_.reserve(vocab.size());
  for (const auto& [token, id] : vocab.items()) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= max_id)
      throw error(errc::bad_input, where + ": model.vocab[\"" + token + "\"] = " + part_json::brief(id) +
                                       ": an id is an integer from 0 to " + std::to_string(max_id - 1));
    const auto at = id.get<std::size_t>();
    if (at >= tokens_.size()) {
      tokens_.resize(at + 1);
      present_.resize(at + 1, 0);
    }
    if (present_[at])
      throw error(errc::bad_input,
                  where + ": model.vocab gives id " + std::to_string(at) + " to both \"" + tokens_[at] + "\" and \"" + token + "\"");
    present_[at] = 1;
    tokens_[at] = token;
    vocab_.emplace(token, static_cast<std::int32_t>(at));
  }
  short_ids_.assign(short_limit, -1);
  for (char32_t c = 0; c < short_limit; ++c) {
    std::string text;
    utf8::append(text, c);
    short_ids_[c] = token_to_id(text).value_or(-1);
  }
  byte_ids_.assign(256, -1);
  for (int b = 0; b < 256; ++b) {
    std::array<char, 8> name{};
    std::snprintf(name.data(), name.size(), "<0x%02X>", static_cast<unsigned>(b));
    byte_ids_[std::size_t(b)] = token_to_id(name.data()).value_or(-1);
  }
}

void bpe::read_merges(const nlohmann::json& merges, const std::string& where) {
  const std::size_t places = std::bit_ceil(std::max<std::size_t>(16, merges.size() * 2));
  pair_keys_.assign(places, empty_pair);
  pair_values_.resize(places);
  std::int32_t rank = 0;
  for (const auto& entry : merges) {
    const auto [left, right] = merge_parts(entry, std::size_t(rank), where);
    std::array<std::int32_t, 3> ids{};
    std::size_t i = 0;
    if (right.size() < prefix_.size())
      throw error(errc::bad_input, where + ": model.merges[" + std::to_string(rank) + "]: token \"" + right +
                                       "\" is shorter than model.continuing_subword_prefix");
    for (const std::string& token : {left, right, left + right.substr(prefix_.size())}) {
      const auto id = token_to_id(token);
      if (!id)
        throw error(errc::bad_input, where + ": model.merges[" + std::to_string(rank) + "]: token \"" + token + "\" is not in model.vocab");
      ids[i++] = *id;
    }
    put_merge(pair_key(ids[0], ids[1]), {rank, ids[2]});
    ++rank;
  }
}

void bpe::put_merge(std::uint64_t pair, merge m) {
  const std::size_t mask = pair_keys_.size() - 1;
  std::size_t at = mix(pair) & mask;
  while (pair_keys_[at] != empty_pair && pair_keys_[at] != pair)
    at = (at + 1) & mask;
  pair_keys_[at] = pair;
  pair_values_[at] = m; // of a pair given twice the later rank counts, as in the package
}

const bpe::merge* bpe::find_merge(std::int32_t left, std::int32_t right) const {
  const std::uint64_t pair = pair_key(left, right);
  const std::size_t mask = pair_keys_.size() - 1;
  for (std::size_t at = mix(pair) & mask; pair_keys_[at] != empty_pair; at = (at + 1) & mask)
    if (pair_keys_[at] == pair)
      return &pair_values_[at];
  return nullptr;
}

std::optional<std::int32_t> bpe::token_to_id(std::string_view token) const {
  const auto it = vocab_.find(token);
  return it == vocab_.end() ? std::nullopt : std::optional(it->second);
}

const std::string* bpe::id_to_token(std::int64_t id) const {
  return id >= 0 && id < id_limit() && present_[std::size_t(id)] ? &tokens_[std::size_t(id)] : nullptr;
}

bool bpe::append_bytes(std::string_view character, std::vector<std::int32_t>& symbols) const {
  for (const char c : character)
    if (byte_ids_[static_cast<unsigned char>(c)] < 0)
      return false;
  for (const char c : character)
    symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
  return true;
}

void bpe::split_characters(std::string_view piece, std::vector<std::int32_t>& symbols) const {
  bool pending = false; // an unknown token that is written when the next known one comes
  std::string with_affixes;
  for (std::size_t pos = 0; pos < piece.size();) {
    const std::size_t begin = pos;
    const char32_t c = utf8::next(piece, pos);
    std::string_view character = piece.substr(begin, pos - begin);
    std::int32_t id = -1;
    if (prefix_.empty() && suffix_.empty()) {
      id = c < short_limit ? short_ids_[c] : token_to_id(character).value_or(-1);
    } else {
      with_affixes.assign(begin > 0 ? prefix_ : "").append(character).append(pos == piece.size() ? suffix_ : "");
      character = with_affixes;
      id = token_to_id(character).value_or(-1);
    }
    if (id >= 0) {
      if (pending)
        symbols.push_back(*unknown_);
      pending = false;
      symbols.push_back(id);
    } else if (byte_fallback_ && append_bytes(character, symbols)) {
      continue; // a pending unknown stays behind the bytes: the package's order
    } else if (unknown_) {
      if (pending && !fuse_unknown_)
        symbols.push_back(*unknown_);
      pending = true;
    }
  }
  if (pending)
    symbols.push_back(*unknown_);
}

void bpe::merge_all(std::vector<std::int32_t>& symbols) const {
  struct node {
    std::int32_t id, previous, next;
  };
  struct candidate {
    std::int32_t rank, position, id;
    bool operator<(const candidate& o) const { return rank != o.rank ? rank > o.rank : position > o.position; }
  };
  const auto n = static_cast<std::int32_t>(symbols.size());
  std::vector<node> nodes(symbols.size());
  std::vector<candidate> start;
  for (std::int32_t i = 0; i < n; ++i) {
    nodes[std::size_t(i)] = {symbols[std::size_t(i)], i - 1, i + 1 < n ? i + 1 : -1};
    if (i + 1 < n)
      if (const merge* m = find_merge(symbols[std::size_t(i)], symbols[std::size_t(i) + 1]))
        start.push_back({m->rank, i, m->id});
  }
  std::priority_queue<candidate> queue(std::less<candidate>{}, std::move(start));
  const auto consider = [&](std::int32_t left, std::int32_t right) {
    if (const merge* m = find_merge(nodes[std::size_t(left)].id, nodes[std::size_t(right)].id))
      queue.push({m->rank, left, m->id});
  };
  while (!queue.empty()) {
    const candidate top = queue.top();
    queue.pop();
    node& left = nodes[std::size_t(top.position)];
    if (left.id < 0 || left.next < 0)
      continue; // merged into its left neighbour, or last by now
    node& right = nodes[std::size_t(left.next)];
    if (const merge* m = find_merge(left.id, right.id); !m || m->id != top.id)
      continue; // its neighbour has changed since
    left.id = top.id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0)
      nodes[std::size_t(left.next)].previous = top.position;
    if (left.previous >= 0)
      consider(left.previous, top.position);
    if (left.next >= 0)
      consider(top.position, left.next);
  }
  symbols.clear();
  for (const node& s : nodes)
    if (s.id >= 0)
      symbols.push_back(s.id);
}

void bpe::encode(std::string_view piece, std::vector<std::int32_t>& ids) const {
  if (piece.empty())
    return;
  if (ignore_merges_)
    if (const auto id = token_to_id(piece)) {
      ids.push_back(*id);
      return;
    }
  if (cache.owner != serial_) {
    cache.owner = serial_;
    cache.words.clear();
  }
  if (piece.size() <= cached_length)
    if (const auto it = cache.words.find(piece); it != cache.words.end()) {
      ids.insert(ids.end(), it->second.begin(), it->second.end());
      return;
    }
  std::vector<std::int32_t> symbols;
  symbols.reserve(piece.size());
  split_characters(piece, symbols);
  if (symbols.size() > 1)
    merge_all(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
  if (piece.size() <= cached_length) {
    if (cache.words.size() >= cache_words)
      cache.words.clear();
    cache.words.emplace(piece, std::move(symbols));
  }
}

} // namespace troupe
