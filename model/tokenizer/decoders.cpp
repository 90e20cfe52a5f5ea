#include "model/tokenizer/part_json.hpp"
#include "model/tokenizer/parts.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <functional>
#include <map>

namespace troupe {
namespace {

using tokens = std::vector<std::string>;

class byte_level final : public decoder {
public:
  tokens apply(tokens in) const override {
    std::string bytes, text;
    for (const auto& token : in)
      append_byte_level(bytes, token);
    utf8::append_lossy(text, bytes);
    return {std::move(text)};
  }
  bool joins_bytes() const override { return true; }
};

class fuse final : public decoder {
public:
  tokens apply(tokens in) const override {
    std::string text;
    for (const auto& token : in)
      text += token;
    return {std::move(text)};
  }
};

class in_turn final : public decoder {
public:
  explicit in_turn(std::vector<std::unique_ptr<decoder>> parts) : parts_(std::move(parts)) {}
  tokens apply(tokens in) const override {
    for (const auto& part : parts_)
      in = part->apply(std::move(in));
    return in;
  }
  bool joins_bytes() const override { return parts_.size() == 1 && parts_.front()->joins_bytes(); }
  bool cuts_end() const override {
    // Behind the first part bytes may be cut in other places than tokens.
    return std::any_of(parts_.begin(), parts_.end(), [](const auto& p) { return p->cuts_end() || p->joins_bytes(); });
  }

private:
  std::vector<std::unique_ptr<decoder>> parts_;
};

using json = nlohmann::json;
using made = std::unique_ptr<decoder>;

made read(const json& part, const std::string& where, int depth) {
  using reader = std::function<made(const json&, const std::string&, int)>;
  static const std::map<std::string, reader> readers = {
      {"ByteLevel", [](const json&, const std::string&, int) { return std::make_unique<byte_level>(); }},
      {"Fuse", [](const json&, const std::string&, int) { return std::make_unique<fuse>(); }},
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
