#include "model/tokenizer/parts.hpp"
#include "model/tokenizer/pattern.hpp"
#include "model/tokenizer/unicode.hpp"
#include "model/tokenizer/utf8.hpp"
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
  std::string apply(std::string text) const override {
    std::string out;
    std::size_t done = 0;
    pattern_.for_each(text, [&](std::size_t begin, std::size_t end) {
      out.append(text, done, begin - done).append(content_);
      done = end;
    });
    return out.append(text, done);
  }

private:
  regex pattern_;
  std::string content_;
};

class lowercase final : public normalizer {
public:
  std::string apply(std::string text) const override { return unicode::lowercase(text); }
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

class in_turn final : public normalizer {
public:
  explicit in_turn(std::vector<std::unique_ptr<normalizer>> parts) : parts_(std::move(parts)) {}
  std::string apply(std::string text) const override {
    for (const auto& part : parts_)
      text = part->apply(std::move(text));
    return text;
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
      {"Lowercase", [](const json&, const std::string&, int) { return std::make_unique<lowercase>(); }},
      {"Prepend", [](const json& p, const std::string& w, int) { return std::make_unique<prepend>(part_json::text(p, "prepend", w)); }},
      {"Replace", [](const json& p, const std::string& w,
                     int) { return std::make_unique<replace_pattern>(read_pattern(p, "pattern", w), part_json::text(p, "content", w)); }},
      {"Strip",
       [](const json& p, const std::string& w, int) {
         return std::make_unique<strip>(part_json::boolean(p, "strip_left", true, w), part_json::boolean(p, "strip_right", true, w));
       }},
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
