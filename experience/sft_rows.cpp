#include "experience/sft_rows.hpp"
#include "core/error.hpp"
#include "experience/row_parts.hpp"
#include "model/tokenizer/chat_template.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <algorithm>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

/// Reads one line.
class row_reader {
public:
  row_reader(const json_line& line, const data_section& data, const sft_encoder& encoder, std::uint64_t source)
      : line_(line), data_(data), encoder_(encoder) {
    row_.source = source;
  }

  sft_row read() {
    try {
      if (line_.value.contains(data_.messages_key))
        read_conversation();
      else if (line_.value.contains(data_.prompt_key))
        read_response();
      else
        line_.fail("no key \"" + data_.messages_key + "\", and no \"" + data_.prompt_key + "\" with \"" + data_.response_key + "\"");
    } catch (const error& e) {
      if (std::string_view(e.what()).starts_with(line_.where))
        throw;
      throw error(e.code(), line_.where + ": " + e.what());
    }
    // What follows the last learnt token changes nothing.
    row_.ids.resize(std::size_t(row_.targets.back()) + 1);
    return std::move(row_);
  }

private:
  void read_conversation() {
    const json& messages = line_.at(data_.messages_key);
    if (!messages.is_array())
      line_.fail("\"" + data_.messages_key + "\" must be a list of messages, found " + messages.type_name());
    require_template(data_.messages_key);
    check_messages(line_, data_.messages_key, messages);
    if (encoder_.marked)
      add_marked(messages, "\"" + data_.messages_key + "\"");
    else
      add_conversation(messages, 0, "\"" + data_.messages_key + "\"");
  }

  void read_response() {
    const json& prompt = line_.at(data_.prompt_key);
    const json& response = line_.at(data_.response_key);
    if (!response.is_string())
      line_.fail("\"" + data_.response_key + "\" must be a string, found " + response.type_name());
    if (response.get_ref<const std::string&>().empty())
      line_.fail("\"" + data_.response_key + "\" is empty: there is nothing to learn");
    const bool templated = prompt.is_array() || (prompt.is_string() && data_.chat_template == "always");
    if (!templated) {
      row_.ids = prompt_ids(line_, data_, encoder_.prompts);
      if (row_.ids.empty())
        line_.fail("the prompt encodes to no token");
      add(encoder_.prompts.encode(response.get_ref<const std::string&>(), false), true);
      if (!encoder_.end_tokens.empty())
        add({encoder_.end_tokens.front()}, true);
      if (row_.targets.empty())
        line_.fail("\"" + data_.response_key + "\" encodes to no token: there is nothing to learn");
      return;
    }
    require_template(data_.prompt_key);
    json messages = prompt;
    if (prompt.is_array())
      check_messages(line_, data_.prompt_key, prompt);
    else
      messages = json::array({{{"role", "user"}, {"content", prompt}}});
    const std::size_t first = messages.size();
    messages.push_back({{"role", "assistant"}, {"content", response}});
    add_conversation(messages, first, "\"" + data_.prompt_key + "\" with \"" + data_.response_key + "\"");
  }

  void require_template(const std::string& key) const {
    if (data_.chat_template == "never")
      line_.fail("\"" + key + "\" holds messages, and data.chat_template = \"never\" takes strings only");
    if (!encoder_.render)
      line_.fail("\"" + key + "\" needs a chat template, and the model has none; give \"" + data_.prompt_key + "\" and \"" +
                 data_.response_key + "\" as plain strings");
  }

  /// Learns what the template's {% generation %} blocks hold; every piece is encoded by itself, as below.
  void add_marked(const json& messages, const std::string& name) {
    const auto [text, assistant] = encoder_.marked(messages);
    std::size_t done = 0;
    for (const auto& [begin, end] : assistant) {
      if (end <= done)
        continue; // a block inside another
      add(encoder_.prompts.encode(text.substr(done, std::max(begin, done) - done), false), false);
      if (row_.ids.empty())
        line_.fail(name + ": nothing stands before what the assistant says first");
      add(encoder_.prompts.encode(text.substr(std::max(begin, done), end - std::max(begin, done)), false), true);
      done = end;
    }
    if (row_.targets.empty())
      line_.fail(name + ": the chat template's {% generation %} blocks hold nothing of it: there is nothing to learn");
  }

  /// Learns what the assistant says in messages `first` and later. The text is cut where the assistant begins and ends, and every
  /// piece is encoded by itself: as in generation, where the prompt has been encoded when the response begins.
  void add_conversation(const json& messages, std::size_t first, const std::string& name) {
    std::string done; // rendered and added so far
    bool any = false;
    for (std::size_t i = first; i < messages.size(); ++i) {
      if (messages[i].at("role") != "assistant")
        continue;
      const json& content = messages[i].at("content");
      if (content.empty() || (content.is_string() && content.get_ref<const std::string&>().empty()))
        line_.fail("message " + std::to_string(i) + " of " + name + ": the assistant says nothing, so there is nothing to learn");
      const json before(messages.begin(), messages.begin() + std::ptrdiff_t(i));
      const json with(messages.begin(), messages.begin() + std::ptrdiff_t(i) + 1);
      add(encoder_.prompts.encode(next_piece(done, encoder_.render(before, true), i), false), false);
      add_said(encoder_.prompts.encode(next_piece(done, encoder_.render(with, false), i), false), i);
      any = true;
    }
    if (!any)
      line_.fail(name + " holds no message of the role \"assistant\": there is nothing to learn");
    next_piece(done, encoder_.render(messages, false), messages.size() - 1);
  }

  /// What `text` adds to `done`, which becomes it.
  std::string next_piece(std::string& done, std::string text, std::size_t message) const {
    if (!text.starts_with(done))
      line_.fail("row " + std::to_string(row_.source) + ": the chat template renders the messages before message " +
                 std::to_string(message) + " otherwise once it is there, so that no token can be given to who said it; give \"" +
                 data_.prompt_key + "\" and \"" + data_.response_key + "\" instead");
    std::string piece = text.substr(done.size());
    done = std::move(text);
    return piece;
  }

  /// The assistant's tokens up to the end token: generation stops there, and what the template adds behind it is nobody's.
  void add_said(const std::vector<std::int32_t>& ids, std::size_t message) {
    const auto ends = [&](std::int32_t id) {
      return std::find(encoder_.end_tokens.begin(), encoder_.end_tokens.end(), id) != encoder_.end_tokens.end();
    };
    const auto last = std::find_if(ids.rbegin(), ids.rend(), ends).base();
    const auto cut = last == ids.begin() ? ids.end() : last;
    if (ids.empty() || row_.ids.empty())
      line_.fail("message " + std::to_string(message) + " encodes to no token, or nothing stands before it: there is nothing to learn");
    add({ids.begin(), cut}, true);
    add({cut, ids.end()}, false);
  }

  void add(const std::vector<std::int32_t>& ids, bool learnt) {
    for (const auto id : ids) {
      if (learnt)
        row_.targets.push_back(std::int32_t(row_.ids.size()));
      row_.ids.push_back(id);
    }
  }

  const json_line& line_;
  const data_section& data_;
  const sft_encoder& encoder_;
  sft_row row_;
};

/// Cuts or refuses a row over the limit; false: it is left out.
bool fit(const json_line& line, const data_section& data, sft_row& row) {
  const std::int64_t limit = data.max_prompt_length + data.max_response_length, n = std::int64_t(row.ids.size());
  if (n <= limit)
    return true;
  if (data.filter_overlong_prompts)
    return false;
  if (data.truncation == "error")
    line.fail("the row has " + std::to_string(n) + " tokens, data.max_prompt_length + data.max_response_length is " +
              std::to_string(limit) + "; raise them, or set data.filter_overlong_prompts or data.truncation");
  const auto cut = std::int32_t(data.truncation == "left" ? n - limit : 0);
  std::vector<std::int32_t> kept;
  for (const auto t : row.targets)
    if (t - cut >= 1 && t - cut < limit)
      kept.push_back(t - cut);
  if (kept.empty())
    line.fail("cut to " + std::to_string(limit) + " tokens the row has nothing to learn; raise data.max_prompt_length or " +
              "data.max_response_length, or set data.filter_overlong_prompts");
  row.ids = {row.ids.begin() + cut, row.ids.begin() + cut + kept.back() + 1};
  row.targets = std::move(kept);
  return true;
}

} // namespace

sft_encoder make_sft_encoder(const tokenizer& tok, const chat_template* chat, std::vector<std::int32_t> end_tokens) {
  sft_encoder out;
  out.prompts = make_prompt_encoder(tok, chat);
  out.end_tokens = std::move(end_tokens);
  if (chat)
    out.render = [chat](const json& messages, bool add_generation_prompt) { return chat->render(messages, add_generation_prompt); };
  if (chat && chat->marks())
    out.marked = [chat](const json& messages) { return chat->render_marked(messages, false); };
  return out;
}

std::vector<sft_row> load_sft_rows(const std::vector<std::string>& files, const data_section& data, const sft_encoder& encoder) {
  std::vector<sft_row> rows;
  std::uint64_t source = 0;
  std::string names;
  for (const std::string& file : files) {
    names += (names.empty() ? "" : ", ") + file;
    for_each_json_line(file, [&](const json_line& line) {
      sft_row row = row_reader(line, data, encoder, source).read();
      ++source;
      if (fit(line, data, row))
        rows.push_back(std::move(row));
    });
  }
  if (source == 0)
    throw error(errc::bad_input,
                (names.empty() ? "no data file was given" : names + ": no rows") + std::string("; one JSON object a line is expected"));
  if (rows.empty())
    throw error(errc::bad_input,
                names + ": all " + std::to_string(source) + " rows are longer than data.max_prompt_length + data.max_response_length = " +
                    std::to_string(data.max_prompt_length + data.max_response_length) + " tokens and were filtered; raise them");
  return rows;
}

} // namespace troupe
