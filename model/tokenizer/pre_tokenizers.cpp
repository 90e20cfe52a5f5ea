#include "model/tokenizer/byte_level.hpp"
#include "model/tokenizer/metaspace.hpp"
#include "model/tokenizer/parts.hpp"
#include "model/tokenizer/pattern.hpp"
#include "model/tokenizer/unicode.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <functional>
#include <map>

namespace troupe {
namespace {

enum class behavior : std::uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };

struct span_of_text {
  std::size_t begin, end;
  bool delimiter;
};

// Delimiters and what lies between, merged as `how` says.
std::vector<span_of_text> merged(const std::vector<span_of_text>& spans, behavior how) {
  std::vector<span_of_text> out;
  bool previous = false;
  const auto add = [&](const span_of_text& s, bool join) {
    if (join && !out.empty()) {
      out.back().begin = std::min(out.back().begin, s.begin);
      out.back().end = std::max(out.back().end, s.end);
    } else {
      out.push_back(s);
    }
    previous = s.delimiter;
  };
  if (how == behavior::merged_with_next) {
    for (auto it = spans.rbegin(); it != spans.rend(); ++it)
      add(*it, it->delimiter && !previous);
    std::reverse(out.begin(), out.end());
    return out;
  }
  for (const auto& s : spans) {
    if (how == behavior::removed && s.delimiter)
      continue;
    add(s, how == behavior::contiguous ? s.delimiter == previous : how == behavior::merged_with_previous && s.delimiter && !previous);
  }
  return out;
}

// Splits every piece at the spans that `find` marks as delimiters, or at what lies between them; empty pieces vanish.
template <class Find>
void split_pieces(piece_list& list, behavior how, Find find, bool invert = false) {
  std::vector<piece> out;
  out.reserve(list.pieces.size() * 2);
  std::vector<span_of_text> spans;
  for (const auto& [text, at_start] : list.pieces) {
    spans.clear();
    std::size_t done = 0;
    find(text, [&](std::size_t begin, std::size_t end) {
      if (done < begin)
        spans.push_back({done, begin, invert});
      spans.push_back({begin, end, !invert});
      done = end;
    });
    if (done < text.size())
      spans.push_back({done, text.size(), invert});
    const auto keep = [&, whole = text, first = at_start](const span_of_text& s) {
      if (s.begin < s.end)
        out.push_back({whole.substr(s.begin, s.end - s.begin), first && s.begin == 0});
    };
    if (how == behavior::isolated)
      std::for_each(spans.begin(), spans.end(), keep);
    else
      for (const auto& s : merged(spans, how))
        keep(s);
  }
  list.pieces = std::move(out);
}

// Characters for which `is` holds, each a delimiter.
template <class Is>
auto characters(Is is) {
  return [is](std::string_view text, auto mark) {
    for (std::size_t pos = 0; pos < text.size();) {
      const std::size_t begin = pos;
      if (is(utf8::next(text, pos)))
        mark(begin, pos);
    }
  };
}

// Runs of characters that `kind_of` gives the same number, not 0; each a delimiter.
template <class Kind>
auto runs(Kind kind_of) {
  return [kind_of](std::string_view text, auto mark) {
    for (std::size_t pos = 0; pos < text.size();) {
      const std::size_t begin = pos;
      const int kind = kind_of(utf8::next(text, pos));
      for (std::size_t on = pos; on < text.size() && kind_of(utf8::next(text, on)) == kind;)
        pos = on;
      if (kind != 0)
        mark(begin, pos);
    }
  };
}

class byte_level final : public pre_tokenizer {
public:
  byte_level(bool add_prefix_space, bool use_regex)
      : prefix_(add_prefix_space), use_regex_(use_regex),
        words_(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", "pre_tokenizer ByteLevel") {}
  void split(piece_list& list) const override {
    for (auto& p : list.pieces)
      if (prefix_ && !p.text.starts_with(' '))
        p.text = list.storage.emplace_back(" " + std::string(p.text));
    if (use_regex_)
      split_pieces(list, behavior::isolated, [this](std::string_view text, auto mark) { words_.for_each(text, mark); });
    std::size_t bytes = 0;
    for (const auto& p : list.pieces)
      bytes += p.text.size();
    auto& mapped = list.storage.emplace_back();
    mapped.reserve(bytes * 2); // a byte becomes at most two: the views below stay good
    for (auto& p : list.pieces) {
      const std::size_t begin = mapped.size();
      for (const char c : p.text)
        mapped += byte_level_characters()[static_cast<unsigned char>(c)];
      p.text = std::string_view(mapped).substr(begin);
    }
  }
  bool writes() const override { return true; }

private:
  bool prefix_, use_regex_;
  regex words_;
};

class digits final : public pre_tokenizer {
public:
  explicit digits(bool individual) : individual_(individual) {}
  void split(piece_list& list) const override {
    split_pieces(list, individual_ ? behavior::isolated : behavior::contiguous, characters(unicode::is_numeric));
  }

private:
  bool individual_;
};

class split_at final : public pre_tokenizer {
public:
  split_at(regex pattern, behavior how, bool invert) : pattern_(std::move(pattern)), how_(how), invert_(invert) {}
  void split(piece_list& list) const override {
    split_pieces(
        list, how_, [this](std::string_view text, auto mark) { pattern_.for_each(text, mark); }, invert_);
  }

private:
  regex pattern_;
  behavior how_;
  bool invert_;
};

class whitespace_split final : public pre_tokenizer {
public:
  void split(piece_list& list) const override { split_pieces(list, behavior::removed, characters(unicode::is_space)); }
};

// Words, and what stands between them but white space: \w+|[^\w\s]+
class whitespace final : public pre_tokenizer {
public:
  void split(piece_list& list) const override {
    const auto kind = [](char32_t c) { return unicode::is_word(c) ? 1 : unicode::is_space(c) ? 0 : 2; };
    split_pieces(list, behavior::removed, runs(kind), true);
  }
};

class punctuation final : public pre_tokenizer {
public:
  explicit punctuation(behavior how) : how_(how) {}
  void split(piece_list& list) const override { split_pieces(list, how_, characters(unicode::is_punctuation)); }

private:
  behavior how_;
};

class metaspace final : public pre_tokenizer {
public:
  explicit metaspace(metaspace_options options) : options_(std::move(options)) {}
  void split(piece_list& list) const override {
    for (auto& p : list.pieces) {
      auto& text = list.storage.emplace_back();
      const bool prepend = options_.scheme == metaspace_options::always || (options_.scheme == metaspace_options::first && p.at_start);
      if (prepend && !p.text.starts_with(' ') && !p.text.starts_with(options_.character))
        text += options_.character;
      for (const char c : p.text)
        if (c == ' ')
          text += options_.character;
        else
          text += c;
      p.text = text;
    }
    if (options_.split)
      split_pieces(list, behavior::merged_with_next, [this](std::string_view text, auto mark) {
        const auto& by = options_.character;
        for (auto at = text.find(by); at != std::string_view::npos; at = text.find(by, at + by.size()))
          mark(at, at + by.size());
      });
  }
  bool needs_start() const override { return options_.scheme == metaspace_options::first; }
  bool writes() const override { return true; }

private:
  metaspace_options options_;
};

class in_turn final : public pre_tokenizer {
public:
  in_turn(std::vector<std::unique_ptr<pre_tokenizer>> parts, const std::string& where) : parts_(std::move(parts)) {
    bool written = false;
    for (const auto& part : parts_) {
      if (written && part->needs_start())
        throw error(errc::unsupported,
                    where + ": Metaspace with prepend_scheme first behind a part that changes the text is not supported");
      written |= part->writes();
    }
  }
  void split(piece_list& list) const override {
    for (const auto& part : parts_)
      part->split(list);
  }
  bool needs_start() const override {
    return std::any_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->needs_start(); });
  }
  bool writes() const override {
    return std::any_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->writes(); });
  }

private:
  std::vector<std::unique_ptr<pre_tokenizer>> parts_;
};

using json = nlohmann::json;
using made = std::unique_ptr<pre_tokenizer>;

behavior read_behavior(const json& part, const std::string& where) {
  static const std::map<std::string, behavior> names = {{"Removed", behavior::removed},
                                                        {"Isolated", behavior::isolated},
                                                        {"MergedWithPrevious", behavior::merged_with_previous},
                                                        {"MergedWithNext", behavior::merged_with_next},
                                                        {"Contiguous", behavior::contiguous}};
  const auto name = part_json::text(part, "behavior", where);
  const auto it = names.find(name);
  if (it == names.end())
    throw error(errc::bad_input,
                where + ".behavior \"" + name + "\" is none of Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
  return it->second;
}

made read(const json& part, const std::string& where, int depth) {
  using reader = std::function<made(const json&, const std::string&, int)>;
  static const std::map<std::string, reader> readers = {
      {"ByteLevel",
       [](const json& p, const std::string& w, int) {
         return std::make_unique<byte_level>(part_json::boolean(p, "add_prefix_space", true, w),
                                             part_json::boolean(p, "use_regex", true, w));
       }},
      {"Digits", [](const json& p, const std::string& w,
                    int) { return std::make_unique<digits>(part_json::boolean(p, "individual_digits", false, w)); }},
      {"Split",
       [](const json& p, const std::string& w, int) {
         return std::make_unique<split_at>(read_pattern(p, "pattern", w), read_behavior(p, w), part_json::boolean(p, "invert", false, w));
       }},
      {"Metaspace", [](const json& p, const std::string& w, int) { return std::make_unique<metaspace>(read_metaspace(p, w)); }},
      {"Punctuation", [](const json& p, const std::string& w,
                         int) { return std::make_unique<punctuation>(p.contains("behavior") ? read_behavior(p, w) : behavior::isolated); }},
      {"Whitespace", [](const json&, const std::string&, int) { return std::make_unique<whitespace>(); }},
      {"WhitespaceSplit", [](const json&, const std::string&, int) { return std::make_unique<whitespace_split>(); }},
      {"Sequence", [](const json& p, const std::string& w,
                      int d) { return std::make_unique<in_turn>(part_json::sequence<pre_tokenizer>(p, "pretokenizers", w, d, read), w); }},
  };
  const auto type = part_json::type_of(part, where);
  const auto it = readers.find(type);
  if (it == readers.end())
    throw error(errc::unsupported, where + ": pre_tokenizer " + type + " is not supported");
  return it->second(part, where, depth);
}

} // namespace

std::unique_ptr<pre_tokenizer> read_pre_tokenizer(const json& part, const std::string& where) {
  return part.is_null() ? nullptr : read(part, where, 0);
}

} // namespace troupe
