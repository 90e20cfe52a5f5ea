#include "cli/requests_sampling.hpp"
#include "core/error.hpp"
#include <charconv>
#include <functional>
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

std::string shown(const json& value) { return value.is_structured() ? value.type_name() : value.dump(); }

// A key's value of the type of `out`, which stays as it is where the line has no such key.
class reader {
public:
  explicit reader(const json_line& line) : line_(line) {}

  void read(const char* key, double& out) const {
    if (const json* v = value(key, "a number", &json::is_number))
      out = v->get<double>();
  }
  void read(const char* key, bool& out) const {
    if (const json* v = value(key, "true or false", &json::is_boolean))
      out = v->get<bool>();
  }
  void read(const char* key, std::int64_t& out) const {
    if (const json* v = value(key, "an integer", &json::is_number_integer))
      out = integer(key, *v);
  }
  void read(const char* key, std::vector<std::int32_t>& out) const {
    const json* v = value(key, "a list of token ids", &json::is_array);
    if (!v)
      return;
    out.clear();
    for (const auto& id : *v)
      out.push_back(token(key, id));
    if (out.empty() && std::string_view(key) == "allowed_token_ids")
      line_.fail("\"allowed_token_ids\" is empty; leave it out to allow all");
  }
  void read(const char* key, std::vector<std::string>& out) const {
    const auto text_or_list = [](const json& v) { return v.is_string() || v.is_array(); };
    const json* v = value(key, "a text or a list of texts", text_or_list);
    if (!v)
      return;
    out.clear();
    if (v->is_string())
      return out.push_back(v->get<std::string>());
    for (const auto& text : *v) {
      if (!text.is_string())
        line_.fail("\"" + std::string(key) + "\" has " + shown(text) + " in it; it must be a text or a list of texts");
      out.push_back(text.get<std::string>());
    }
  }
  void read(const char* key, std::vector<std::pair<std::int32_t, float>>& out) const {
    const json* v = value(key, "an object, {\"ID\": BIAS}", &json::is_object);
    if (!v)
      return;
    out.clear();
    for (const auto& [id, bias] : v->items()) {
      if (!bias.is_number())
        line_.fail("\"" + std::string(key) + "\" of token " + id + " is " + shown(bias) + "; it must be a number");
      try {
        out.push_back(parse_logit_bias(id + ":" + bias.dump()));
      } catch (const error& e) {
        line_.fail(e.what());
      }
    }
  }

private:
  const json* value(const char* key, const char* wanted, const std::function<bool(const json&)>& fits) const {
    const auto it = line_.value.find(key);
    if (it == line_.value.end())
      return nullptr;
    if (!fits(*it))
      line_.fail("\"" + std::string(key) + "\" must be " + wanted + ", found " + shown(*it));
    return &*it;
  }
  std::int64_t integer(const char* key, const json& v) const {
    if (v.is_number_unsigned() && v.get<std::uint64_t>() > std::uint64_t(INT64_MAX))
      line_.fail("\"" + std::string(key) + "\" is " + v.dump() + ", which is too large");
    return v.get<std::int64_t>();
  }
  std::int32_t token(const char* key, const json& v) const {
    if (!v.is_number_unsigned() || v.get<std::uint64_t>() > std::uint64_t(INT32_MAX))
      line_.fail("\"" + std::string(key) + "\" has " + shown(v) + " in it; it must be a list of token ids");
    return v.get<std::int32_t>();
  }

  const json_line& line_;
};

} // namespace

const std::vector<std::string>& sampling_keys() {
  static const std::vector<std::string> keys = {"n",
                                                "max_tokens",
                                                "min_tokens",
                                                "temperature",
                                                "top_p",
                                                "top_k",
                                                "min_p",
                                                "repetition_penalty",
                                                "presence_penalty",
                                                "frequency_penalty",
                                                "logit_bias",
                                                "allowed_token_ids",
                                                "top_logprobs",
                                                "stop",
                                                "stop_token_ids",
                                                "ignore_eos"};
  return keys;
}

void read_sampling(const json_line& line, const model_limits& limits, request_options& options) {
  const reader in(line);
  sampling_params& p = options.params;
  in.read("n", options.n);
  if (options.n < 1 || options.n > most_samples)
    line.fail("\"n\" is " + std::to_string(options.n) + "; it must be from 1 to " + std::to_string(most_samples));
  in.read("max_tokens", p.max_tokens);
  in.read("min_tokens", p.min_tokens);
  in.read("temperature", p.temperature);
  in.read("top_p", p.top_p);
  in.read("top_k", p.top_k);
  in.read("min_p", p.min_p);
  in.read("repetition_penalty", p.repetition_penalty);
  in.read("presence_penalty", p.presence_penalty);
  in.read("frequency_penalty", p.frequency_penalty);
  in.read("logit_bias", p.logit_bias);
  in.read("allowed_token_ids", p.allowed_ids);
  in.read("top_logprobs", p.top_logprobs);
  in.read("stop", p.stop_strings);
  in.read("stop_token_ids", p.stop_ids);
  in.read("ignore_eos", p.ignore_eos);
  try {
    check_sampling(p, limits.vocab_size);
  } catch (const error& e) {
    line.fail(e.what());
  }
}

std::pair<std::int32_t, float> parse_logit_bias(std::string_view text) {
  std::pair<std::int32_t, float> out;
  const auto colon = text.find(':');
  const auto id = text.substr(0, colon), bias = text.substr(colon == text.npos ? text.size() : colon + 1);
  const auto id_end = std::from_chars(id.data(), id.data() + id.size(), out.first);
  const auto bias_end = std::from_chars(bias.data(), bias.data() + bias.size(), out.second);
  if (id_end.ec != std::errc{} || id_end.ptr != id.data() + id.size() || id != std::to_string(out.first) || out.first < 0 ||
      bias_end.ec != std::errc{} || bias_end.ptr != bias.data() + bias.size())
    throw error{errc::bad_usage, "logit_bias \"" + std::string(text) + "\" is not ID:BIAS, a token id and a number, such as 42:-1.5"};
  return out;
}

} // namespace troupe
