#include "core/config.hpp"
#include "core/config_fields.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <sstream>
#include <tuple>

// The parser asserts what some malformed keys break: here that is an exception, in every kind of build.
namespace troupe {
struct broken_assumption {};
[[noreturn]] static void break_parser() { throw broken_assumption{}; }
} // namespace troupe
#undef NDEBUG
#define TOML_ASSERT(expr) ((expr) ? void() : troupe::break_parser())
#define TOML_HEADER_ONLY 1
#include <toml++/toml.h>

namespace troupe {
namespace {

// Bounds on the text, so that no file can exhaust the parser's stack: tables nest by dots as deep as a line has them.
constexpr std::size_t largest_file = 1 << 20;
constexpr std::size_t most_dots = 64;

/// Text for a one-line message: no control characters, not endless.
std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 200))
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  return text.size() > 200 ? out + "..." : out;
}

/// Throws where a text could exhaust the parser's stack. `where` begins the message.
void check_bounds(std::string_view text, const std::string& where) {
  if (text.size() > largest_file)
    throw error(errc::bad_config, where + " has " + std::to_string(text.size()) + " bytes; the limit is " + std::to_string(largest_file));
  std::size_t line = 1, dots = 0;
  char quote = 0;
  bool comment = false;
  for (const char c : text) {
    if (c == '\n') {
      ++line;
      dots = 0;
      quote = 0;
      comment = false;
    } else if (quote ? c == quote : (c == '"' || c == '\'') && !comment) {
      quote = quote ? 0 : c;
    } else if (!quote) {
      comment = comment || c == '#';
      dots += c == '.' && !comment;
    }
    if (dots > most_dots)
      throw error(errc::bad_config,
                  where + ":" + std::to_string(line) + ": more than " + std::to_string(most_dots) + " dots in a line; no key is that deep");
  }
}

bool breaks_parser(std::string_view text) {
  try {
    (void)toml::parse(text);
  } catch (const broken_assumption&) {
    return true;
  } catch (const toml::parse_error&) { // cut off in the middle, or wrong in a way that the parser reports
  }
  return false;
}

/// The line at which a text breaks the parser's assumptions: the end of the shortest run of lines that does.
std::size_t breaking_line(std::string_view text) {
  std::vector<std::size_t> ends;
  for (std::size_t at = 0; at < text.size() && at != std::string_view::npos; at = text.find('\n', at + 1))
    ends.push_back(at);
  ends.push_back(text.size());
  const auto first = std::partition_point(ends.begin(), ends.end(), [&](std::size_t end) { return !breaks_parser(text.substr(0, end)); });
  return std::max<std::size_t>(1, std::size_t(first - ends.begin()));
}

struct problem {
  std::size_t order, line, column; // order: 0 the file, then the overrides, then what has no place
  errc code;
  std::string text; // with its place
};

std::string text_of(const toml::node& node) {
  std::ostringstream out;
  out << toml::toml_formatter{node};
  return printable(out.str());
}

std::string kind_of(const toml::node& node) {
  switch (node.type()) {
  case toml::node_type::table:
    return "a table";
  case toml::node_type::array:
    return "a list";
  case toml::node_type::string:
    return "the string " + text_of(node);
  case toml::node_type::integer:
    return "the integer " + text_of(node);
  case toml::node_type::floating_point:
    return "the number " + text_of(node);
  case toml::node_type::boolean:
    return text_of(node);
  default:
    return "a date or time";
  }
}

/// Converts a node to the alternative that `like` holds; empty when it is of another type.
std::optional<config_value> convert(const toml::node& node, const config_value& like) {
  struct converter {
    const toml::node& node;
    std::optional<config_value> operator()(bool) const {
      const auto v = node.value_exact<bool>();
      return v ? std::optional<config_value>(*v) : std::nullopt;
    }
    std::optional<config_value> operator()(std::int64_t) const {
      const auto v = node.value_exact<std::int64_t>();
      return v ? std::optional<config_value>(*v) : std::nullopt;
    }
    std::optional<config_value> operator()(double) const {
      if (const auto v = node.value_exact<std::int64_t>())
        return double(*v);
      const auto v = node.value_exact<double>();
      return v ? std::optional<config_value>(*v) : std::nullopt;
    }
    std::optional<config_value> operator()(const std::string&) const {
      const auto v = node.value_exact<std::string>();
      return v ? std::optional<config_value>(*v) : std::nullopt;
    }
    std::optional<config_value> operator()(const std::vector<std::string>&) const {
      std::vector<std::string> out;
      if (!node.is_array())
        return std::nullopt;
      for (const auto& item : *node.as_array()) {
        const auto v = item.value_exact<std::string>();
        if (!v)
          return std::nullopt;
        out.push_back(*v);
      }
      return out;
    }
    std::optional<config_value> operator()(const std::vector<std::int64_t>&) const {
      std::vector<std::int64_t> out;
      if (!node.is_array())
        return std::nullopt;
      for (const auto& item : *node.as_array()) {
        const auto v = item.value_exact<std::int64_t>();
        if (!v)
          return std::nullopt;
        out.push_back(*v);
      }
      return out;
    }
    std::optional<config_value> operator()(const std::map<std::int64_t, double>&) const {
      std::map<std::int64_t, double> out;
      if (!node.is_table())
        return std::nullopt;
      for (const auto& [key, item] : *node.as_table()) {
        const std::string_view text = key.str();
        std::int64_t id = 0;
        const auto end = std::from_chars(text.data(), text.data() + text.size(), id);
        const auto v = converter{item}(0.0);
        if (end.ec != std::errc{} || text != std::to_string(id) || !v)
          return std::nullopt;
        out[id] = std::get<double>(*v);
      }
      return out;
    }
    std::optional<config_value> operator()(const std::array<double, 2>&) const {
      const auto* list = node.as_array();
      if (!list || list->size() != 2)
        return std::nullopt;
      std::array<double, 2> out{};
      for (std::size_t i = 0; i < 2; ++i) {
        const auto v = converter{(*list)[i]}(0.0);
        if (!v)
          return std::nullopt;
        out[i] = std::get<double>(*v);
      }
      return out;
    }
  };
  return std::visit(converter{node}, like);
}

std::string_view wanted(const config_value& like) {
  constexpr std::string_view names[] = {"true or false",      "an integer",
                                        "a number",           "a string",
                                        "a list of strings",  "a list of two numbers",
                                        "a list of integers", "a table of numbers by token id, such as { 42 = -1.5 }"};
  return names[like.index()];
}

bool in_range(const config_field& field, double value) {
  if (!std::isfinite(value))
    return false;
  return (field.above_min ? value > field.min : value >= field.min) && (field.below_max ? value < field.max : value <= field.max);
}

/// Why a text cannot be this field's value, or empty.
std::string text_fault(const config_field& field, const std::string& text) {
  if (text.empty() && !field.may_be_empty)
    return "is empty";
  if (!field.any_text && std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
    return "holds a control character";
  if (!field.choices.empty() && std::find(field.choices.begin(), field.choices.end(), text) == field.choices.end()) {
    return "is not one of " + range_of(field) + "; nearest: " + std::string(nearest_word(text, field.choices));
  }
  return "";
}

/// Why a value of the right type is not this field's, or empty.
std::string value_fault(const config_field& field, const config_value& value) {
  struct checker {
    const config_field& field;
    std::string range(bool good) const {
      return good ? "" : "is out of range: " + (range_of(field).empty() ? "finite numbers" : range_of(field));
    }
    std::string operator()(bool) const { return ""; }
    std::string operator()(std::int64_t v) const { return range(in_range(field, double(v))); }
    std::string operator()(double v) const { return range(in_range(field, v)); }
    std::string operator()(const std::array<double, 2>& v) const { return range(in_range(field, v[0]) && in_range(field, v[1])); }
    std::string operator()(const std::vector<std::int64_t>& v) const {
      if (v.empty() && !field.may_be_empty)
        return "is empty";
      return range(std::all_of(v.begin(), v.end(), [this](std::int64_t i) { return in_range(field, double(i)); }));
    }
    std::string operator()(const std::map<std::int64_t, double>& v) const {
      if (std::any_of(v.begin(), v.end(), [](const auto& item) { return item.first < 0; }))
        return "has a token id below 0";
      return range(std::all_of(v.begin(), v.end(), [this](const auto& item) { return in_range(field, item.second); }));
    }
    std::string operator()(const std::string& v) const { return text_fault(field, v); }
    std::string operator()(const std::vector<std::string>& v) const {
      if (v.empty() && !field.may_be_empty)
        return "is empty";
      for (const auto& item : v)
        if (item.empty() || !text_fault(field, item).empty())
          return "has an item that " + (item.empty() ? "is empty" : text_fault(field, item));
      return "";
    }
  };
  return std::visit(checker{field}, value);
}

/// Reads one document with its overrides into a config, keeping every fault with its place.
class reader {
public:
  reader(std::string_view text, std::string name, const std::vector<std::string>& overrides) : name_(std::move(name)) {
    parse(text);
    for (const auto& text_of_override : overrides)
      add_override(text_of_override);
  }

  config read() {
    config cfg;
    walk(root_, "", cfg);
    for (const auto& f : config_fields())
      if (f.required && !seen(f.key))
        complain_about(f.key, errc::bad_config, f.key + " is required: " + f.meaning);
    throw_first();
    fill_defaults(cfg);
    check_relations(cfg);
    throw_first();
    return cfg;
  }

private:
  void parse(std::string_view text) {
    check_bounds(text, name_);
    try {
      root_ = toml::parse(text, name_);
    } catch (const toml::parse_error& e) {
      throw error(errc::bad_config, place(e.source()) + "not TOML: " + printable(e.description()));
    } catch (const broken_assumption&) {
      throw error(errc::bad_config, name_ + ":" + std::to_string(breaking_line(text)) + ": not TOML: no key or value begins like this");
    }
  }

  /// `text` is key=value; the value in TOML's spelling, a bare word is a string.
  void add_override(const std::string& text) {
    const std::string where = "--set " + printable(text) + ": ";
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
      throw error(errc::bad_config, where + "write --set key=value");
    const std::string key = text.substr(0, equals), value = text.substr(equals + 1);
    check_bounds(text, "--set " + printable(text));
    toml::table parsed = parse_override_value(value, where);
    toml::table* table = &root_;
    std::size_t begin = 0;
    for (std::size_t dot; (dot = key.find('.', begin)) != std::string::npos; begin = dot + 1) {
      const std::string part = key.substr(begin, dot - begin);
      if (!table->get_as<toml::table>(part))
        table->insert_or_assign(part, toml::table{}); // what stood there is replaced
      table = table->get_as<toml::table>(part);
    }
    table->insert_or_assign(key.substr(begin), std::move(*parsed.get("value")));
    overrides_.push_back({key, where});
  }

  static toml::table parse_override_value(const std::string& value, const std::string& where) {
    if (value.find_first_of("\n\r") != std::string::npos)
      throw error(errc::bad_config, where + "a value is one line");
    const bool bare = value.find_first_of("\"'[]{}") == std::string::npos;
    try {
      return toml::parse("value = " + value);
    } catch (const toml::parse_error& e) {
      if (!bare)
        throw error(errc::bad_config, where + "not a TOML value: " + printable(e.description()));
    } catch (const broken_assumption&) {
      throw error(errc::bad_config, where + "not a TOML value");
    }
    try {
      return toml::parse("value = " + to_toml(config_value(value)));
    } catch (const toml::parse_error& e) {
      throw error(errc::bad_config, where + "not a TOML value: " + printable(e.description()));
    }
  }

  std::string place(const toml::source_region& source) const {
    return name_ + ":" + std::to_string(source.begin.line) + ":" + std::to_string(source.begin.column) + ": ";
  }

  static bool is_within(std::string_view key, std::string_view table) {
    return key.size() > table.size() && key[table.size()] == '.' && key.starts_with(table);
  }

  /// The override that gave `key`, a table around it or a part of it, counted from 1; 0: the file did.
  std::size_t override_of(std::string_view key) const {
    for (std::size_t i = overrides_.size(); i > 0; --i) {
      const std::string& given = overrides_[i - 1].key;
      if (key == given || is_within(key, given) || is_within(given, key))
        return i;
    }
    return 0;
  }

  void complain(std::string_view key, const toml::source_region& source, errc code, const std::string& text) {
    const std::size_t by = override_of(key);
    problems_.push_back({by, source.begin.line, source.begin.column, code, (by ? overrides_[by - 1].where : place(source)) + text});
  }

  /// At the place of the key's value; at the file's end where it was not given.
  void complain_about(const std::string& key, errc code, const std::string& text) {
    const toml::node* node = root_.at_path(key).node();
    if (node)
      complain(key, node->source(), code, text);
    else
      problems_.push_back({overrides_.size() + 1, 0, 0, code, name_ + ": " + text});
  }

  bool seen(std::string_view key) const { return std::find(seen_.begin(), seen_.end(), key) != seen_.end(); }

  static bool is_table_name(const std::string& key) {
    return std::any_of(config_fields().begin(), config_fields().end(), [&](const auto& f) { return f.key.rfind(key + ".", 0) == 0; });
  }

  void walk(const toml::table& table, const std::string& prefix, config& cfg) {
    for (const auto& [name, node] : table) {
      const std::string key = prefix + std::string(name.str());
      const toml::table* inner = node.as_table();
      if (const config_field* f = find_field(key))
        read_value(*f, node, cfg);
      else if (inner && (!inner->empty() || is_table_name(key)))
        walk(*inner, key + ".", cfg);
      else if (is_table_name(key))
        complain(key, node.source(), errc::bad_config, printable(key) + " is a table, got " + kind_of(node));
      else
        unknown(key, name.source());
    }
  }

  void read_value(const config_field& f, const toml::node& node, config& cfg) {
    seen_.push_back(f.key);
    const config_value like = f.get(config{});
    // The number of local workers may be written as one.
    const auto workers = f.key == "placement.local_workers" ? node.value_exact<std::int64_t>() : std::nullopt;
    const auto value = workers ? config_value(std::to_string(*workers)) : convert(node, like);
    if (!value)
      return complain(f.key, node.source(), errc::bad_config, f.key + " wants " + std::string(wanted(like)) + ", got " + kind_of(node));
    const std::string shown = f.key + " = " + printable(to_toml(*value)) + " ";
    if (const std::string fault = value_fault(f, *value); !fault.empty())
      return complain(f.key, node.source(), errc::bad_config, shown + fault);
    if (!f.can.empty() && std::find(f.can.begin(), f.can.end(), to_toml(*value)) == f.can.end())
      return complain(f.key, node.source(), errc::unsupported, shown + "is not in this version, which can do " + list_of(f));
    f.set(cfg, *value);
  }

  static std::string list_of(const config_field& f) {
    std::string out;
    for (const auto& value : f.can)
      out += (out.empty() ? "" : ", ") + value;
    return f.instead.empty() ? out : out + " only: " + f.instead;
  }

  void unknown(const std::string& key, const toml::source_region& source) {
    for (const auto& [known, instead] : later_keys()) {
      const bool whole_table = known.substr(known.size() - 2) == ".*";
      if (key == known || (whole_table && key.rfind(known.substr(0, known.size() - 1), 0) == 0))
        return complain(key, source, errc::unsupported, key + " is not in this version: " + std::string(instead));
    }
    const std::string foreign = foreign_key_hint(key);
    complain(key, source, errc::bad_config,
             "unknown key " + printable(key) + (foreign.empty() ? "; nearest known key: " + nearest_key(key) : ", " + foreign));
  }

  void fill_defaults(config& cfg) const {
    if (!seen("run.name"))
      cfg.run.name = std::filesystem::path(name_).stem().string();
    if (cfg.run.dir.empty())
      cfg.run.dir = "runs/" + cfg.run.name;
    if (seen("run.total_epochs") && !seen("run.total_steps"))
      cfg.run.total_steps = 0;
    if (!seen("learner.ppo_mini_batch_size"))
      cfg.learner.ppo_mini_batch_size = cfg.data.train_batch_size;
  }

  void check_relations(const config& c) {
    const auto bad = [&](const std::string& key, const std::string& text) { complain_about(key, errc::bad_config, text); };
    if (c.run.name.find('/') != std::string::npos || c.run.name == "." || c.run.name == ".." || c.run.name.empty())
      bad("run.name", "run.name = \"" + printable(c.run.name) + "\" must name a directory, without a slash; give run.name");
    if (seen("run.total_steps") && seen("run.total_epochs"))
      bad("run.total_epochs", "run.total_steps and run.total_epochs are both given; keep one");
    if (c.run.task == run_task::rl && c.reward.function.empty())
      bad("reward.function", "reward.function is required for run.task = \"rl\": " + range_of(*find_field("reward.function")));
    if (c.algorithm.adv_estimator == "grpo_passk" && c.rollout.n < 2)
      bad("rollout.n", "rollout.n = 1 leaves algorithm.adv_estimator = \"grpo_passk\" nothing to compare; it needs at least 2");
    if (c.data.train_batch_size % c.learner.ppo_mini_batch_size != 0)
      bad("learner.ppo_mini_batch_size", "learner.ppo_mini_batch_size = " + std::to_string(c.learner.ppo_mini_batch_size) +
                                             " does not divide data.train_batch_size = " + std::to_string(c.data.train_batch_size) +
                                             "; both count " + (c.run.task == run_task::rl ? "prompts" : "rows"));
    const std::int64_t longest = c.data.max_prompt_length + c.data.max_response_length;
    if (c.learner.ppo_max_token_len < longest)
      bad("learner.ppo_max_token_len",
          "learner.ppo_max_token_len = " + std::to_string(c.learner.ppo_max_token_len) +
              " is less than one sample: data.max_prompt_length + data.max_response_length = " + std::to_string(longest));
    if (!c.reference.path.empty() && !c.learner.use_kl_loss)
      bad("reference.path", "reference.path is given, but nothing asks for a KL; set learner.use_kl_loss = true or leave it out");
    check_task(c);
    check_placement(c);
    check_serving(c);
  }

  void check_task(const config& c) {
    const auto bad = [&](const std::string& key, errc code, const std::string& text) { complain_about(key, code, text); };
    const std::string task = to_toml(find_field("run.task")->get(c));
    if (c.run.task != run_task::distill)
      for (const std::string key : {"distill.teacher", "distill.top_k"})
        if (const auto* f = find_field(key); f->get(c) != f->get(config{}))
          bad(key, errc::bad_config, key + " belongs to run.task = \"distill\", and run.task is " + task + "; leave it out");
    if (c.run.task == run_task::rl)
      return;
    for (const std::string key : {"learner.entropy_coeff", "learner.use_kl_loss"})
      if (const auto* f = find_field(key); f->get(c) != f->get(config{}))
        bad(key, errc::bad_config, key + " belongs to run.task = \"rl\", and run.task is " + task + "; leave it out");
  }

  void check_placement(const config& c) {
    const auto bad = [&](const std::string& key, errc code, const std::string& text) { complain_about(key, code, text); };
    const std::string& workers = c.placement.local_workers;
    const bool number = !workers.empty() && workers.size() <= 5 && workers.find_first_not_of("0123456789") == std::string::npos;
    if (workers != "all" && !number)
      bad("placement.local_workers", errc::bad_config,
          "placement.local_workers = \"" + printable(workers) + "\" is neither \"all\" nor a number from 0 to 99999");
    if (c.placement.processes && c.weightsync.channel == "shared")
      bad("weightsync.channel", errc::bad_config,
          "weightsync.channel = \"shared\" needs placement.processes = false; use \"auto\" or \"zmq\"");
    const std::string& listen = c.placement.listen;
    const std::string host = listen.substr(0, listen.rfind(':'));
    if (!is_address(listen))
      bad("placement.listen", errc::bad_config,
          "placement.listen = \"" + printable(listen) + "\" is not HOST:PORT with a port from 0 to 65535");
    else if (host.rfind("127.", 0) != 0 && host != "localhost")
      bad("placement.listen", errc::unsupported,
          "placement.listen = \"" + printable(listen) +
              "\" is not in this version, which has no certificates and listens on 127.0.0.1 only");
  }

  static bool is_address(const std::string& text) {
    const std::size_t colon = text.rfind(':');
    const std::string port = colon == std::string::npos ? "" : text.substr(colon + 1);
    return colon > 0 && !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos &&
           std::stoi(port) <= 65535;
  }

  void check_serving(const config& c) {
    const std::string& serve = c.rollout.serve;
    if (!serve.empty() && !is_address(serve))
      complain_about("rollout.serve", errc::bad_config,
                     "rollout.serve = \"" + printable(serve) + "\" is not HOST:PORT with a port from 0 to 65535");
    if (!serve.empty() && c.run.task != run_task::rl)
      complain_about("rollout.serve", errc::bad_config,
                     "rollout.serve belongs to run.task = \"rl\", and run.task is " + to_toml(find_field("run.task")->get(c)) +
                         "; leave it out");
    if (c.rollout.inflight_cache != "recompute" && serve.empty())
      complain_about("rollout.inflight_cache", errc::unsupported,
                     "rollout.inflight_cache = \"" + c.rollout.inflight_cache +
                         "\" is about samples under way at an update: this version has none but those of rollout.serve; give that or "
                         "leave this out");
  }

  void throw_first() const {
    const auto place_of = [](const problem& p) { return std::tie(p.order, p.line, p.column); };
    const auto first =
        std::min_element(problems_.begin(), problems_.end(), [&](const auto& a, const auto& b) { return place_of(a) < place_of(b); });
    if (first != problems_.end())
      throw error(first->code, first->text);
  }

  struct given_override {
    std::string key, where;
  };

  std::string name_;
  toml::table root_;
  std::vector<given_override> overrides_;
  std::vector<std::string> seen_;
  std::vector<problem> problems_;
};

} // namespace

config load_config(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  return parse_config(read_file(file), file.string(), overrides);
}

config parse_config(std::string_view text, const std::string& name, const std::vector<std::string>& overrides) {
  return reader(text, name, overrides).read();
}

std::string to_toml(const config& cfg) {
  std::string out, table;
  for (const auto& f : config_fields()) {
    // Of the two lengths of a run one is given.
    if ((f.key == "run.total_steps" && cfg.run.total_steps == 0) || (f.key == "run.total_epochs" && cfg.run.total_epochs == 0))
      continue;
    const std::size_t dot = f.key.rfind('.');
    if (f.key.substr(0, dot) != table) {
      table = f.key.substr(0, dot);
      out += (out.empty() ? "[" : "\n[") + table + "]\n";
    }
    out += f.key.substr(dot + 1) + " = " + to_toml(f.get(cfg)) + "\n";
  }
  return out;
}

std::vector<std::string> differing_keys(const config& a, const config& b) {
  std::vector<std::string> keys;
  for (const auto& f : config_fields())
    if (f.get(a) != f.get(b))
      keys.push_back(f.key);
  return keys;
}

} // namespace troupe
