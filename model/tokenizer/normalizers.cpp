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

class normal_form final : public normalizer {
public:
  explicit normal_form(unicode::form f) : form_(f) {}
  std::string apply(std::string text) const override { return unicode::normalize(text, form_); }

private:
  unicode::form form_;
};

class prepend final : public normalizer {
public:
  explicit prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  std::string apply(std::string text) const override { return text.empty() ? text : prefix_ + text; }

private:
  std::string prefix_;
};

class replace_pattern final : public normalizer {
public:
  replace_pattern(regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::string apply(std::string text) const override { return pattern_.replaced(text, content_); }
  bool keeps_start() const override { return !content_.empty() && !pattern_.matches(""); }

private:
  regex pattern_;
  std::string content_;
};

class lowercase final : public normalizer {
public:
  std::string apply(std::string text) const override { return unicode::lowercase(text); }
  bool keeps_start() const override { return true; }
};

class strip final : public normalizer {
public:
  strip(bool left, bool right) : left_(left), right_(right) {}
  std::string apply(std::string text) const override {
    std::size_t begin = 0, end = text.size();
    for (std::size_t at = begin; left_ && at < end && unicode::is_space(utf8::next(text, at));)
      begin = at;
    for (std::size_t at = end; right_ && at > begin && unicode::is_space(utf8::previous(text, at));)
      end = at;
    return text.substr(begin, end - begin);
  }

private:
  bool left_, right_;
};

class strip_accents final : public normalizer {
public:
  std::string apply(std::string text) const override {
    std::string out;
    out.reserve(text.size());
    for (std::size_t pos = 0; pos < text.size();) {
      const std::size_t at = pos;
      if (!unicode::is_combining_mark(utf8::next(text, pos)))
        out.append(text, at, pos - at);
    }
    return out;
  }
};

class byte_level final : public normalizer {
public:
  std::string apply(std::string text) const override {
    std::string out;
    for (const char c : text)
      out += byte_level_characters()[static_cast<unsigned char>(c)];
    return out;
  }
};

class in_turn final : public normalizer {
public:
  explicit in_turn(std::vector<std::unique_ptr<normalizer>> parts) : parts_(std::move(parts)) {}
  std::string apply(std::string text) const override {
    for (const auto& part : parts_)
      text = part->apply(std::move(text));
    return text;
  }
  bool keeps_start() const override {
    return std::all_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->keeps_start(); });
  }

private:
  std::vector<std::unique_ptr<normalizer>> parts_;
};

using json = nlohmann::json;
using made = std::unique_ptr<normalizer>;

made read(const json& part, const std::string& where, int depth) {
  using reader = std::function<made(const json&, const std::string&, int)>;
  static const auto form = [](unicode::form f) {
    return [f](const json&, const std::string&, int) { return std::make_unique<normal_form>(f); };
  };
  static const std::map<std::string, reader> readers = {
      {"NFC", form(unicode::form::nfc)},
      {"NFD", form(unicode::form::nfd)},
      {"NFKC", form(unicode::form::nfkc)},
      {"NFKD", form(unicode::form::nfkd)},
      {"ByteLevel", [](const json&, const std::string&, int) { return std::make_unique<byte_level>(); }},
      {"Lowercase", [](const json&, const std::string&, int) { return std::make_unique<lowercase>(); }},
      {"Prepend", [](const json& p, const std::string& w, int) { return std::make_unique<prepend>(part_json::text(p, "prepend", w)); }},
      {"Replace", [](const json& p, const std::string& w,
                     int) { return std::make_unique<replace_pattern>(read_pattern(p, "pattern", w), part_json::text(p, "content", w)); }},
      {"Strip",
       [](const json& p, const std::string& w, int) {
         return std::make_unique<strip>(part_json::boolean(p, "strip_left", true, w), part_json::boolean(p, "strip_right", true, w));
       }},
      {"StripAccents", [](const json&, const std::string&, int) { return std::make_unique<strip_accents>(); }},
      {"Sequence", [](const json& p, const std::string& w,
                      int d) { return std::make_unique<in_turn>(part_json::sequence<normalizer>(p, "normalizers", w, d, read)); }},
  };
  const auto type = part_json::type_of(part, where);
  const auto it = readers.find(type);
  if (it == readers.end())
    throw error(errc::unsupported, where + ": normalizer " + type + " is not supported");
  return it->second(part, where, depth);
}

} // namespace

std::unique_ptr<normalizer> read_normalizer(const json& part, const std::string& where) {
  return part.is_null() ? nullptr : read(part, where, 0);
}

} // namespace troupe
