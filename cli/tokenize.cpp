#include "cli/command.hpp"
#include "cli/line_file.hpp"
#include "core/error.hpp"
#include "experience/json_lines.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace troupe {
namespace {

struct tokenize_options {
  std::filesystem::path model, input, output;
  bool decode = false;
};

struct request {
  std::string text;
  bool add_special_tokens = true;
  std::vector<std::int32_t> ids;
};

std::vector<std::int32_t> read_ids(const json_line& line, const nlohmann::ordered_json& value) {
  if (!value.is_array())
    line.fail(std::string("\"ids\" must be a list of token ids, found ") + value.type_name());
  std::vector<std::int32_t> ids;
  ids.reserve(value.size());
  for (const auto& id : value) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > std::numeric_limits<std::uint32_t>::max())
      line.fail("ids[" + std::to_string(ids.size()) + "] is " + (id.is_structured() ? id.type_name() : id.dump()) +
                "; it must be an integer from 0 to 4294967295");
    // Ids that no vocabulary reaches are passed over by decode, as all that are out of range.
    const auto number = id.get<std::uint64_t>();
    ids.push_back(number > std::uint64_t(std::numeric_limits<std::int32_t>::max()) ? -1 : static_cast<std::int32_t>(number));
  }
  return ids;
}

request read_request(const json_line& line, bool decode) {
  line.at(decode ? "ids" : "text");
  request r;
  for (const auto& [key, value] : line.value.items()) {
    if (decode && key == "ids")
      r.ids = read_ids(line, value);
    else if (!decode && key == "text" && value.is_string())
      r.text = value.get<std::string>();
    else if (!decode && key == "add_special_tokens" && value.is_boolean())
      r.add_special_tokens = value.get<bool>();
    else if (!decode && (key == "text" || key == "add_special_tokens"))
      line.fail("\"" + key + "\" must be a " + (key == "text" ? "string" : "boolean") + ", found " + value.type_name());
    else
      line.fail("unknown key " + json_text(key) + "; known are " + (decode ? "ids" : "text, add_special_tokens"));
  }
  return r;
}

int tokenize(const tokenize_options& options) {
  check_output(options.output);
  const auto tok = tokenizer::load(options.model);
  std::vector<request> requests;
  for_each_json_line(options.input, [&](const json_line& line) { requests.push_back(read_request(line, options.decode)); });
  if (requests.empty())
    throw error(errc::bad_input, options.input.string() + ": no line; one JSON object a line is wanted, such as " +
                                     (options.decode ? R"({"ids": [1, 2]})" : R"({"text": "..."})"));
  std::string out;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto& r = requests[i];
    nlohmann::ordered_json row = {{"index", i}};
    if (options.decode)
      row["text"] = tok->decode(r.ids, false);
    else
      row["ids"] = tok->encode(r.text, r.add_special_tokens);
    out += row.dump() + "\n";
  }
  write_lines(options.output, out);
  return 0;
}

} // namespace

void add_tokenize(CLI::App& root, action& chosen) {
  auto options = std::make_shared<tokenize_options>();
  CLI::App* app = root.add_subcommand("tokenize", "text to token ids, or ids to text");
  app->add_option("--model", options->model, "model directory with tokenizer.json")->required();
  app->add_option("--input", options->input, "JSONL: {\"text\": \"...\"}, or with --decode {\"ids\": [...]}")->required();
  app->add_option("--output", options->output, "JSONL: {\"index\": 0, \"ids\": [...]}, or with --decode {\"index\": 0, \"text\": \"...\"}")
      ->required();
  app->add_flag("--decode", options->decode, "ids to text");
  app->callback([options, &chosen] { chosen = [options] { return tokenize(*options); }; });
}

} // namespace troupe
