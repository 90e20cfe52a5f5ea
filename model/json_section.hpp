#pragma once
#include "core/error.hpp"
#include "model/weights/json.hpp"
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

namespace troupe {

/// A JSON object of a configuration file; every getter names file and key when it refuses. A null value counts as absent.
class json_section {
public:
  json_section(const nlohmann::json& object, std::string file, std::string prefix = "")
      : object_(&object), file_(std::move(file)), prefix_(std::move(prefix)) {}

  [[noreturn]] void refuse(const std::string& key, const std::string& reason) const {
    throw error(errc::bad_input, file_ + ": " + prefix_ + key + ": " + reason);
  }
  [[noreturn]] void unsupported(const std::string& key, const std::string& value, const std::string& known) const {
    throw error(errc::unsupported, file_ + ": " + prefix_ + key + " = " + value + ": this version knows " + known);
  }

  const nlohmann::json* find(const std::string& key) const {
    const auto found = object_->find(key);
    return found == object_->end() || found->is_null() ? nullptr : &*found;
  }
  /// Whether the key is there, be it null.
  bool has(const std::string& key) const { return object_->contains(key); }
  const nlohmann::json& require(const std::string& key) const {
    const auto* value = find(key);
    if (value == nullptr)
      refuse(key, "is missing");
    return *value;
  }

  /// An integer from `least` to 2^31 - 1.
  std::int64_t integer(const std::string& key, const nlohmann::json& value, std::int64_t least) const {
    if (!value.is_number_integer())
      refuse(key, std::string("must be an integer, found ") + shown(value));
    const bool too_large =
        value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t(std::int64_t{std::numeric_limits<std::int32_t>::max()});
    if (too_large || value.get<std::int64_t>() < least)
      refuse(key, shown(value) + " is out of range " + std::to_string(least) + " to " +
                      std::to_string(std::int64_t{std::numeric_limits<std::int32_t>::max()}));
    return value.get<std::int64_t>();
  }
  std::int64_t size(const std::string& key) const { return integer(key, require(key), 1); }
  std::int64_t size(const std::string& key, std::int64_t otherwise) const {
    const auto* value = find(key);
    return value == nullptr ? otherwise : integer(key, *value, 1);
  }

  double positive(const std::string& key, const nlohmann::json& value) const {
    if (!value.is_number())
      refuse(key, std::string("must be a number, found ") + shown(value));
    const auto number = value.get<double>();
    if (!std::isfinite(number) || number <= 0)
      refuse(key, shown(value) + " must be greater than 0");
    return number;
  }
  double positive(const std::string& key) const { return positive(key, require(key)); }
  double positive(const std::string& key, double otherwise) const {
    const auto* value = find(key);
    return value == nullptr ? otherwise : positive(key, *value);
  }

  bool flag(const std::string& key, bool otherwise) const {
    const auto* value = find(key);
    if (value != nullptr && !value->is_boolean())
      refuse(key, std::string("must be true or false, found ") + shown(*value));
    return value == nullptr ? otherwise : value->get<bool>();
  }

  std::string text(const std::string& key, const std::string& otherwise) const {
    const auto* value = find(key);
    if (value != nullptr && !value->is_string())
      refuse(key, std::string("must be a string, found ") + shown(*value));
    return value == nullptr ? otherwise : value->get<std::string>();
  }

  std::optional<json_section> object(const std::string& key) const {
    const auto* value = find(key);
    if (value == nullptr)
      return std::nullopt;
    if (!value->is_object())
      refuse(key, std::string("must be an object, found ") + shown(*value));
    return json_section(*value, file_, prefix_ + key + ".");
  }
  bool empty() const { return object_->empty(); }
  std::string dump() const { return object_->dump(); }

private:
  static std::string shown(const nlohmann::json& value) {
    auto text = value.dump();
    if (text.size() > 80)
      text.replace(80, std::string::npos, "...");
    return text;
  }

  const nlohmann::json* object_;
  std::string file_, prefix_;
};

} // namespace troupe
