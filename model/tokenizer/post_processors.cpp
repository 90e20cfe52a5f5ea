#include "model/tokenizer/part_json.hpp"
#include "model/tokenizer/parts.hpp"
#include <functional>
#include <limits>
#include <map>

namespace troupe {
namespace {

using ids = std::vector<std::int32_t>;

// Trims offsets, which are not asked for here.
class unchanged final : public post_processor {
public:
  ids apply(ids in) const override { return in; }
};

class template_processing final : public post_processor {
public:
  template_processing(const nlohmann::json& part, const std::string& where);
  ids apply(ids in) const override {
    ids out;
    for (const auto& piece : pieces_) {
      const auto& from = piece.text ? in : piece.special;
      out.insert(out.end(), from.begin(), from.end());
    }
    return out;
  }

private:
  struct piece {
    bool text;
    ids special;
  };
  std::vector<piece> pieces_;
};

ids special_ids(const nlohmann::json& part, const std::string& name, const std::string& where) {
  const auto specials = part.find("special_tokens");
  if (specials == part.end() || !specials->is_object() || !specials->contains(name) || !(*specials)[name].is_object())
    throw error(errc::bad_input, where + ".special_tokens has no entry \"" + name + "\", which the template names");
  ids out;
  const std::string place = where + ".special_tokens[\"" + name + "\"]";
  for (const auto& id : part_json::array((*specials)[name], "ids", place)) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > std::uint64_t(std::numeric_limits<std::int32_t>::max()))
      throw error(errc::bad_input, place + ".ids: " + part_json::brief(id) + " is not an id");
    out.push_back(id.get<std::int32_t>());
  }
  return out;
}

template_processing::template_processing(const nlohmann::json& part, const std::string& where) {
  const std::string place = where + ".single";
  for (const auto& entry : part_json::array(part, "single", where)) {
    const auto kind = entry.is_object() && entry.size() == 1 ? entry.begin().key() : std::string();
    const auto& body = kind.empty() ? entry : entry.begin().value();
    if ((kind != "Sequence" && kind != "SpecialToken") || !body.is_object())
      throw error(errc::bad_input, place + " must hold {\"Sequence\": {...}} and {\"SpecialToken\": {...}}");
    const auto id = part_json::text(body, "id", place);
    if (kind == "SpecialToken")
      pieces_.push_back({false, special_ids(part, id, where)});
    else if (id == "A")
      pieces_.push_back({true, {}});
    else
      throw error(errc::bad_input, place + " names sequence \"" + id + "\"; a single text is sequence A");
  }
}

class in_turn final : public post_processor {
public:
  explicit in_turn(std::vector<std::unique_ptr<post_processor>> parts) : parts_(std::move(parts)) {}
  ids apply(ids in) const override {
    for (const auto& part : parts_)
      in = part->apply(std::move(in));
    return in;
  }

private:
  std::vector<std::unique_ptr<post_processor>> parts_;
};

using json = nlohmann::json;
using made = std::unique_ptr<post_processor>;

made read(const json& part, const std::string& where, int depth) {
  using reader = std::function<made(const json&, const std::string&, int)>;
  static const std::map<std::string, reader> readers = {
      {"ByteLevel", [](const json&, const std::string&, int) { return std::make_unique<unchanged>(); }},
      {"TemplateProcessing", [](const json& p, const std::string& w, int) { return std::make_unique<template_processing>(p, w); }},
      {"Sequence", [](const json& p, const std::string& w,
                      int d) { return std::make_unique<in_turn>(part_json::sequence<post_processor>(p, "processors", w, d, read)); }},
  };
  const auto type = part_json::type_of(part, where);
  const auto it = readers.find(type);
  if (it == readers.end())
    throw error(errc::unsupported, where + ": post_processor " + type + " is not supported");
  return it->second(part, where, depth);
}

} // namespace

std::unique_ptr<post_processor> read_post_processor(const json& part, const std::string& where) {
  return part.is_null() ? nullptr : read(part, where, 0);
}

} // namespace troupe
