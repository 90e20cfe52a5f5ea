#include "model/tokenizer/byte_level.hpp"
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

// Splits every piece at the spans that `find` marks as delimiters; empty pieces vanish.
template <class Find>
void split_pieces(piece_list& list, behavior how, Find find) {
  std::vector<std::string_view> out;
  out.reserve(list.pieces.size() * 2);
  std::vector<span_of_text> spans;
  for (const auto piece : list.pieces) {
    spans.clear();
    std::size_t done = 0;
    find(piece, [&](std::size_t begin, std::size_t end) {
      if (done < begin)
        spans.push_back({done, begin, false});
      spans.push_back({begin, end, true});
      done = end;
    });
    if (done < piece.size())
      spans.push_back({done, piece.size(), false});
    const auto keep = [&](const span_of_text& s) {
      if (s.begin < s.end)
        out.push_back(piece.substr(s.begin, s.end - s.begin));
    };
    if (how == behavior::isolated)
      std::for_each(spans.begin(), spans.end(), keep);
    else
      for (const auto& s : merged(spans, how))
        keep(s);
  }
  list.pieces = std::move(out);
}

// The same with delimiters and the rest changing places.
template <class Find>
auto inverted(Find find) {
  return [find](std::string_view piece, auto mark) {
    std::size_t done = 0;
    find(piece, [&](std::size_t begin, std::size_t end) {
      if (done < begin)
        mark(done, begin);
      done = end;
    });
    if (done < piece.size())
      mark(done, piece.size());
  };
}

// Characters for which `is` holds, each a delimiter.
template <class Is>
auto characters(Is is) {
  return [is](std::string_view piece, auto mark) {
    for (std::size_t pos = 0; pos < piece.size();) {
      const std::size_t begin = pos;
      if (is(utf8::next(piece, pos)))
        mark(begin, pos);
    }
  };
}

void prepend_to_pieces(piece_list& list, std::string_view prefix) {
  for (auto& piece : list.pieces)
    if (!piece.starts_with(prefix))
      piece = list.storage.emplace_back(std::string(prefix) + std::string(piece));
}

class byte_level final : public pre_tokenizer {
public:
  byte_level(bool add_prefix_space, bool use_regex)
      : prefix_(add_prefix_space), use_regex_(use_regex),
        words_(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", "pre_tokenizer ByteLevel") {}
  void split(piece_list& list) const override {
    if (prefix_)
      prepend_to_pieces(list, " ");
    if (use_regex_)
      split_pieces(list, behavior::isolated, [this](std::string_view piece, auto mark) { words_.for_each(piece, mark); });
    std::size_t bytes = 0;
    for (const auto piece : list.pieces)
      bytes += piece.size();
    auto& mapped = list.storage.emplace_back();
    mapped.reserve(bytes * 2); // a byte becomes at most two: the views below stay good
    for (auto& piece : list.pieces) {
      const std::size_t begin = mapped.size();
      for (const char c : piece)
        mapped += byte_level_characters()[static_cast<unsigned char>(c)];
      piece = std::string_view(mapped).substr(begin);
    }
  }

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
    const auto find = [this](std::string_view piece, auto mark) { pattern_.for_each(piece, mark); };
    if (invert_)
      split_pieces(list, how_, inverted(find));
    else
      split_pieces(list, how_, find);
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

class in_turn final : public pre_tokenizer {
public:
  explicit in_turn(std::vector<std::unique_ptr<pre_tokenizer>> parts) : parts_(std::move(parts)) {}
  void split(piece_list& list) const override {
    for (const auto& part : parts_)
      part->split(list);
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
      {"WhitespaceSplit", [](const json&, const std::string&, int) { return std::make_unique<whitespace_split>(); }},
      {"Sequence", [](const json& p, const std::string& w,
                      int d) { return std::make_unique<in_turn>(part_json::sequence<pre_tokenizer>(p, "pretokenizers", w, d, read)); }},
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
