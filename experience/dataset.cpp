#include "experience/dataset.hpp"
#include "core/error.hpp"
#include "experience/reward.hpp"
#include "experience/row_parts.hpp"

namespace troupe {

using json = nlohmann::ordered_json;

namespace {

/// Finds how the file spells a number of a row: parsing alone would turn 0.10 into 0.1.
class spelling_finder final : public nlohmann::json_sax<json> {
public:
  explicit spelling_finder(const std::string& key) : key_(key) {}
  std::string found;

  bool number_float(number_float_t, const string_t& text) override {
    if (depth_ == 1 && here_)
      found = text;
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ == 1)
      here_ = name == key_;
    return true;
  }
  bool start_object(std::size_t) override { return ++depth_, true; }
  bool end_object() override { return --depth_, true; }
  bool start_array(std::size_t) override { return ++depth_, true; }
  bool end_array() override { return --depth_, true; }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

private:
  const std::string& key_;
  std::size_t depth_ = 0;
  bool here_ = false;
};

std::string answer_of(const json_line& line, const std::string& key) {
  const auto it = line.value.find(key);
  if (it == line.value.end() || it->is_null())
    return "";
  if (it->is_string())
    return it->get<std::string>();
  if (it->is_number_float()) {
    spelling_finder finder(key);
    json::sax_parse(line.text, &finder);
    return finder.found;
  }
  if (it->is_number() || it->is_boolean())
    return it->dump();
  line.fail("\"" + key + "\" must be a string, a number or a boolean, found " + it->type_name());
}

} // namespace

void check_messages(const json_line& line, const std::string& key, const json& messages) {
  if (messages.empty())
    line.fail("\"" + key + "\" is a list without messages");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const json& message = messages[i];
    const std::string name = "message " + std::to_string(i) + " of \"" + key + "\"";
    if (!message.is_object())
      line.fail(name + " must be an object with \"role\" and \"content\", found " + message.type_name());
    const auto role = message.find("role"), content = message.find("content");
    if (role == message.end() || !role->is_string())
      line.fail(name + " needs a string \"role\"");
    if (content == message.end() || !(content->is_string() || content->is_array()))
      line.fail(name + " needs a \"content\": a string or a list of parts");
  }
}

std::vector<std::int32_t> prompt_ids(const json_line& line, const data_section& data, const prompt_encoder& encoder) {
  const json& prompt = line.at(data.prompt_key);
  if (!prompt.is_string() && !prompt.is_array())
    line.fail("\"" + data.prompt_key + "\" must be a string or a list of messages, found " + prompt.type_name());
  try {
    if (prompt.is_string() && data.chat_template != "always")
      return encoder.encode(prompt.get_ref<const std::string&>(), true);
    if (data.chat_template == "never")
      line.fail("\"" + data.prompt_key + "\" is a list of messages, and data.chat_template = \"never\" takes strings only");
    if (!encoder.render)
      line.fail("\"" + data.prompt_key +
                "\" needs a chat template, and the model has none; give plain strings and data.chat_template = \"auto\"");
    if (prompt.is_array()) {
      check_messages(line, data.prompt_key, prompt);
      return encoder.encode(encoder.render(prompt), false);
    }
    return encoder.encode(encoder.render(json::array({{{"role", "user"}, {"content", prompt}}})), false);
  } catch (const error& e) {
    if (std::string_view(e.what()).starts_with(line.where))
      throw;
    throw error(e.code(), line.where + ": " + e.what());
  }
}

namespace {

/// Cuts or refuses a prompt over the limit; false: the row is filtered.
bool fit(const json_line& line, const data_section& data, std::vector<std::int32_t>& ids) {
  const auto limit = std::size_t(data.max_prompt_length);
  if (ids.empty())
    line.fail("the prompt encodes to no token");
  if (ids.size() <= limit)
    return true;
  if (data.filter_overlong_prompts)
    return false;
  if (data.truncation == "left")
    ids.erase(ids.begin(), ids.end() - std::ptrdiff_t(limit));
  else if (data.truncation == "right")
    ids.resize(limit);
  else
    line.fail("the prompt has " + std::to_string(ids.size()) + " tokens, data.max_prompt_length is " + std::to_string(limit) +
              "; raise it, or set data.filter_overlong_prompts or data.truncation");
  return true;
}

std::string checked_answer(const json_line& line, const data_section& data, const reward_function* reward) {
  if (reward) {
    if (line.at(data.answer_key).is_null())
      line.fail("\"" + data.answer_key + "\" is null, and the reward needs an answer");
  }
  std::string answer = answer_of(line, data.answer_key);
  if (reward) {
    const std::string objection = reward->objection(answer);
    if (!objection.empty())
      line.fail("\"" + data.answer_key + "\" = " + json(answer).dump() + " " + objection);
  }
  return answer;
}

} // namespace

std::vector<prompt_row> load_prompts(const std::vector<std::string>& files, const data_section& data, const prompt_encoder& encoder,
                                     const reward_function* reward) {
  std::vector<prompt_row> rows;
  std::uint64_t source = 0;
  std::string names;
  for (const std::string& file : files) {
    names += (names.empty() ? "" : ", ") + file;
    for_each_json_line(file, [&](const json_line& line) {
      prompt_row row{source++, prompt_ids(line, data, encoder), checked_answer(line, data, reward)};
      if (fit(line, data, row.ids))
        rows.push_back(std::move(row));
    });
  }
  if (source == 0)
    throw error(errc::bad_input,
                (names.empty() ? "no data file was given" : names + ": no rows") + std::string("; one JSON object a line is expected"));
  if (rows.empty())
    throw error(errc::bad_input, names + ": all " + std::to_string(source) + " prompts are longer than data.max_prompt_length = " +
                                     std::to_string(data.max_prompt_length) + " tokens and were filtered; raise it");
  return rows;
}

} // namespace troupe
