#include "cli/requests.hpp"
#include "cli/requests_sampling.hpp"
#include "core/error.hpp"
#include "experience/json_lines.hpp"
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

void check_keys(const json_line& line, const std::vector<std::string>& known) {
  std::string names;
  for (const auto& k : known)
    names += (names.empty() ? "" : ", ") + k;
  for (const auto& [key, value] : line.value.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      line.fail("unknown key " + json(key).dump() + "; known are " + names);
}

// A non-negative integer, in whatever way the file spells it as one.
std::uint64_t read_unsigned(const json_line& line, const std::string& key, const json& value) {
  if (!value.is_number_unsigned())
    line.fail("\"" + key + "\" must be an integer from 0 to 18446744073709551615, found " +
              (value.is_structured() ? value.type_name() : value.dump()));
  return value.get<std::uint64_t>();
}

std::vector<std::int32_t> read_ids(const json_line& line, const json& value, const model_limits& limits) {
  if (!value.is_array())
    line.fail(std::string("\"input_ids\" must be a list of token ids, found ") + value.type_name());
  std::vector<std::int32_t> ids;
  ids.reserve(value.size());
  for (const auto& id : value) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= std::uint64_t(limits.vocab_size))
      line.fail("input_ids[" + std::to_string(ids.size()) + "] is " + (id.is_structured() ? id.type_name() : id.dump()) +
                "; it must be an integer from 0 to " + std::to_string(limits.vocab_size - 1));
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

void check_messages(const json_line& line, const json& messages) {
  if (!messages.is_array() || messages.empty())
    line.fail(std::string("\"messages\" must be a list of at least one message, found ") +
              (messages.is_array() ? "an empty one" : messages.type_name()));
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string where = "messages[" + std::to_string(i) + "]";
    if (!messages[i].is_object())
      line.fail(where + " must be an object, found " + messages[i].type_name());
    const auto role = messages[i].find("role"), content = messages[i].find("content");
    if (role == messages[i].end() || !role->is_string())
      line.fail(where + " needs a string \"role\"");
    if (content == messages[i].end() || !(content->is_string() || content->is_array()))
      line.fail(where + " needs a \"content\": a string or a list of parts");
  }
}

std::vector<std::int32_t> encode_line(const json_line& line, const std::string& form, const prompt_encoder& encoder,
                                      const model_limits& limits) {
  const auto& value = line.at(form);
  if (form == "input_ids")
    return read_ids(line, value, limits);
  try {
    if (form == "prompt") {
      if (!value.is_string())
        line.fail(std::string("\"prompt\" must be a string, found ") + value.type_name());
      return encoder.encode(value.get<std::string>(), true);
    }
    check_messages(line, value);
    if (!encoder.render)
      line.fail("\"messages\" needs a chat template, and the model has none; use \"prompt\"");
    return encoder.encode(encoder.render(value), false);
  } catch (const error& e) {
    // What tokenizer and template refuse, they cannot place.
    if (std::string_view(e.what()).starts_with(line.where))
      throw;
    throw error{e.code(), line.where + ": " + e.what()};
  }
}

generate_line read_generate_line(const json_line& line, const prompt_encoder& encoder, const model_limits& limits,
                                 const request_options& options) {
  std::vector<std::string> keys = {"prompt", "messages", "input_ids", "seed"};
  keys.insert(keys.end(), sampling_keys().begin(), sampling_keys().end());
  check_keys(line, keys);
  std::vector<std::string> forms;
  for (const char* form : {"prompt", "messages", "input_ids"})
    if (line.value.contains(form))
      forms.emplace_back(form);
  if (forms.size() != 1)
    line.fail("exactly one of \"prompt\", \"messages\" and \"input_ids\" is wanted, found " +
              (forms.empty() ? std::string("none") : forms[0] + " and " + forms[1]));
  generate_line out;
  out.options = options;
  read_sampling(line, limits, out.options);
  if (const auto seed = line.value.find("seed"); seed != line.value.end())
    out.seed = read_unsigned(line, "seed", *seed);
  out.ids = encode_line(line, forms[0], encoder, limits);
  const auto length = std::int64_t(out.ids.size());
  if (length == 0)
    line.fail("\"" + forms[0] + "\" gives no token; there is nothing to continue");
  if (length >= limits.max_position_embeddings)
    line.fail("\"" + forms[0] + "\" gives " + std::to_string(length) +
              " tokens and leaves no room for one more in max_position_embeddings = " + std::to_string(limits.max_position_embeddings));
  const auto bad = std::find_if(out.ids.begin(), out.ids.end(), [&](std::int32_t id) { return id < 0 || id >= limits.vocab_size; });
  if (bad != out.ids.end())
    line.fail("\"" + forms[0] + "\" gives token id " + std::to_string(*bad) + ", outside the model's vocabulary of " +
              std::to_string(limits.vocab_size) + "; tokenizer and model do not belong together");
  return out;
}

score_line read_score_line(const json_line& line, const model_limits& limits) {
  check_keys(line, {"input_ids", "from"});
  score_line out;
  out.ids = read_ids(line, line.at("input_ids"), limits);
  const auto length = std::int64_t(out.ids.size());
  if (length == 0)
    line.fail("\"input_ids\" is empty; there is nothing to score");
  if (length > limits.max_position_embeddings)
    line.fail("\"input_ids\" has " + std::to_string(length) + " tokens, max_position_embeddings is " +
              std::to_string(limits.max_position_embeddings));
  if (const auto from = line.value.find("from"); from != line.value.end()) {
    if (!from->is_number_unsigned() || from->get<std::uint64_t>() < 1 || from->get<std::uint64_t>() > std::uint64_t(length))
      line.fail("\"from\" is " + (from->is_structured() ? from->type_name() : from->dump()) +
                "; it must be a position from 1 to the number of ids, " + std::to_string(length));
    out.from = from->get<std::int32_t>();
  }
  return out;
}

template <class Line, class Read>
std::vector<Line> read_lines(const std::filesystem::path& file, const char* example, Read&& read) {
  std::vector<Line> lines;
  for_each_json_line(file, [&](const json_line& line) { lines.push_back(read(line)); });
  if (lines.empty())
    throw error{errc::bad_input, file.string() + ": no line; one JSON object a line is wanted, such as " + example};
  return lines;
}

} // namespace

std::vector<generate_line> read_generate_lines(const std::filesystem::path& file, const prompt_encoder& encoder, const model_limits& limits,
                                               const request_options& options) {
  return read_lines<generate_line>(file, R"({"prompt": "..."})",
                                   [&](const json_line& line) { return read_generate_line(line, encoder, limits, options); });
}

std::vector<score_line> read_score_lines(const std::filesystem::path& file, const model_limits& limits) {
  return read_lines<score_line>(file, R"({"input_ids": [1, 2]})", [&](const json_line& line) { return read_score_line(line, limits); });
}

} // namespace troupe
