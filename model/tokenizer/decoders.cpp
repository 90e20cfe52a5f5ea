#include "model/tokenizer/metaspace.hpp"
#include "model/tokenizer/part_json.hpp"
#include "model/tokenizer/parts.hpp"
#include "model/tokenizer/pattern.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <functional>
#include <map>

namespace troupe {
namespace {

constexpr std::string_view replacement = "\xEF\xBF\xBD"; // U+FFFD

// A step that needs its tokens whole.
class whole_tokens : public token_sink {
public:
  explicit whole_tokens(token_sink& next) : next_(next) {}
  void put(std::string_view part, bool begins, bool ends) final {
    if (begins && ends)
      return token(part);
    if (begins)
      held_.clear();
    held_ += part;
    if (ends)
      token(held_);
  }
  void finish() override { next_.finish(); }

protected:
  virtual void token(std::string_view text) = 0;
  token_sink& next_;

private:
  std::string held_;
};

// All tokens as one, which bytes make together.
class byte_level_sink final : public whole_tokens {
public:
  using whole_tokens::whole_tokens;
  void finish() override {
    text_.clear();
    utf8::append_lossy(text_, pending_);
    next_.put(text_, first_, true);
    next_.finish();
  }

protected:
  void token(std::string_view text) override {
    append_byte_level(pending_, text);
    text_.clear();
    pending_.erase(0, utf8::append_lossy(text_, pending_, true));
    next_.put(text_, first_, false);
    first_ = false;
  }

private:
  std::string pending_, text_; // bytes that are no whole character yet
  bool first_ = true;
};

class fuse_sink final : public token_sink {
public:
  explicit fuse_sink(token_sink& next) : next_(next) {}
  void put(std::string_view part, bool /*begins*/, bool /*ends*/) override {
    next_.put(part, first_, false);
    first_ = false;
  }
  void finish() override {
    next_.put({}, first_, true);
    next_.finish();
  }

private:
  token_sink& next_;
  bool first_ = true;
};

// Tokens "<0x41>" as the bytes they name; a run of them that is not UTF-8 becomes U+FFFD, one a byte.
class byte_fallback_sink final : public whole_tokens {
public:
  using whole_tokens::whole_tokens;
  void finish() override {
    flush();
    next_.finish();
  }

protected:
  void token(std::string_view text) override {
    if (const int byte = byte_of(text); byte >= 0) {
      bytes_ += static_cast<char>(byte);
      return;
    }
    flush();
    next_.put(text, true, true);
  }

private:
  static int byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>')
      return -1;
    const auto digit = [](char c) {
      return c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1;
    };
    const int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]); // Rust's parser takes a plus sign
    return high < 0 || low < 0 ? -1 : high * 16 + low;
  }

  void flush() {
    if (bytes_.empty())
      return;
    if (utf8::find_invalid(bytes_) == std::string_view::npos)
      next_.put(bytes_, true, true);
    else
      for (std::size_t i = 0; i < bytes_.size(); ++i)
        next_.put(replacement, true, true);
    bytes_.clear();
  }

  std::string bytes_;
};

class replace_sink final : public whole_tokens {
public:
  replace_sink(token_sink& next, const regex& pattern, const std::string& content)
      : whole_tokens(next), pattern_(pattern), content_(content) {}

protected:
  void token(std::string_view text) override { next_.put(pattern_.replaced(text, content_), true, true); }

private:
  const regex& pattern_;
  const std::string& content_;
};

// Cuts a character off a token's start, as often as it stands there but not more often than asked.
class strip_start_sink final : public token_sink {
public:
  strip_start_sink(token_sink& next, std::string_view character, std::size_t most) : next_(next), character_(character), most_(most) {}
  void put(std::string_view part, bool begins, bool ends) override {
    if (begins)
      left_ = most_;
    while (left_ > 0 && part.starts_with(character_)) {
      part.remove_prefix(character_.size());
      --left_;
    }
    if (!part.empty())
      left_ = 0;
    next_.put(part, begins, ends);
  }
  void finish() override { next_.finish(); }

private:
  token_sink& next_;
  std::string_view character_;
  std::size_t most_, left_ = 0;
};

class strip_end_sink final : public whole_tokens {
public:
  strip_end_sink(token_sink& next, std::string_view character, std::size_t most) : whole_tokens(next), character_(character), most_(most) {}

protected:
  void token(std::string_view text) override {
    for (std::size_t left = most_; left > 0 && text.ends_with(character_); --left)
      text.remove_suffix(character_.size());
    next_.put(text, true, true);
  }

private:
  std::string_view character_;
  std::size_t most_;
};

// The character that stands for a space; in the first token it stands for nothing where one was put before the text.
class metaspace_sink final : public token_sink {
public:
  metaspace_sink(token_sink& next, std::string_view character, bool prepended)
      : next_(next), character_(character), prepended_(prepended) {}
  void put(std::string_view part, bool begins, bool ends) override {
    tokens_ += begins ? 1 : 0;
    text_.clear();
    for (auto at = part.find(character_); at != std::string_view::npos; at = part.find(character_)) {
      text_ += part.substr(0, at);
      if (!prepended_ || tokens_ > 1)
        text_ += ' ';
      part.remove_prefix(at + character_.size());
    }
    next_.put(text_ += part, begins, ends);
  }
  void finish() override { next_.finish(); }

private:
  token_sink& next_;
  std::string_view character_;
  bool prepended_;
  std::size_t tokens_ = 0;
  std::string text_;
};

template <class Sink>
class plain final : public decoder {
public:
  std::unique_ptr<token_sink> begin(token_sink& next) const override { return std::make_unique<Sink>(next); }
};

class replace final : public decoder {
public:
  replace(regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::unique_ptr<token_sink> begin(token_sink& next) const override { return std::make_unique<replace_sink>(next, pattern_, content_); }

private:
  regex pattern_;
  std::string content_;
};

class strip final : public decoder {
public:
  strip(std::string character, std::size_t count, bool at_end) : character_(std::move(character)), count_(count), at_end_(at_end) {}
  std::unique_ptr<token_sink> begin(token_sink& next) const override {
    if (at_end_)
      return std::make_unique<strip_end_sink>(next, character_, count_);
    return std::make_unique<strip_start_sink>(next, character_, count_);
  }

private:
  std::string character_;
  std::size_t count_;
  bool at_end_;
};

class metaspace final : public decoder {
public:
  metaspace(std::string character, bool prepended) : character_(std::move(character)), prepended_(prepended) {}
  std::unique_ptr<token_sink> begin(token_sink& next) const override {
    return std::make_unique<metaspace_sink>(next, character_, prepended_);
  }

private:
  std::string character_;
  bool prepended_;
};

// Steps that each give to the next one.
class chain final : public token_sink {
public:
  chain(const std::vector<std::unique_ptr<decoder>>& parts, token_sink& next) : first_(&next) {
    for (auto it = parts.rbegin(); it != parts.rend(); ++it)
      first_ = sinks_.emplace_back((*it)->begin(*first_)).get();
  }
  void put(std::string_view part, bool begins, bool ends) override { first_->put(part, begins, ends); }
  void finish() override { first_->finish(); }

private:
  std::vector<std::unique_ptr<token_sink>> sinks_;
  token_sink* first_;
};

class in_turn final : public decoder {
public:
  explicit in_turn(std::vector<std::unique_ptr<decoder>> parts) : parts_(std::move(parts)) {}
  std::unique_ptr<token_sink> begin(token_sink& next) const override { return std::make_unique<chain>(parts_, next); }

private:
  std::vector<std::unique_ptr<decoder>> parts_;
};

using json = nlohmann::json;
using made = std::unique_ptr<decoder>;

made read_strip(const json& part, const std::string& where) {
  constexpr std::int64_t most = 1 << 20;
  auto character = part_json::character(part, "content", where);
  const auto start = static_cast<std::size_t>(part_json::count(part, "start", most, where));
  const auto stop = static_cast<std::size_t>(part_json::count(part, "stop", most, where));
  // Where both ends are cut the package may cut one character twice, and fails.
  if (start > 0 && stop > 0)
    throw error(errc::unsupported, where + ": decoder Strip with both start and stop is not supported");
  return std::make_unique<strip>(std::move(character), start + stop, stop > 0);
}

made read(const json& part, const std::string& where, int depth) {
  using reader = std::function<made(const json&, const std::string&, int)>;
  static const std::map<std::string, reader> readers = {
      {"ByteFallback", [](const json&, const std::string&, int) { return std::make_unique<plain<byte_fallback_sink>>(); }},
      {"ByteLevel", [](const json&, const std::string&, int) { return std::make_unique<plain<byte_level_sink>>(); }},
      {"Fuse", [](const json&, const std::string&, int) { return std::make_unique<plain<fuse_sink>>(); }},
      {"Metaspace",
       [](const json& p, const std::string& w, int) {
         const auto m = read_metaspace(p, w);
         return std::make_unique<metaspace>(m.character, m.scheme != metaspace_options::never);
       }},
      {"Replace", [](const json& p, const std::string& w,
                     int) { return std::make_unique<replace>(read_pattern(p, "pattern", w), part_json::text(p, "content", w)); }},
      {"Strip", [](const json& p, const std::string& w, int) { return read_strip(p, w); }},
      {"Sequence", [](const json& p, const std::string& w,
                      int d) { return std::make_unique<in_turn>(part_json::sequence<decoder>(p, "decoders", w, d, read)); }},
  };
  const auto type = part_json::type_of(part, where);
  const auto it = readers.find(type);
  if (it == readers.end())
    throw error(errc::unsupported, where + ": decoder " + type + " is not supported");
  return it->second(part, where, depth);
}

} // namespace

std::unique_ptr<decoder> read_decoder(const json& part, const std::string& where) {
  return part.is_null() ? nullptr : read(part, where, 0);
}

} // namespace troupe
