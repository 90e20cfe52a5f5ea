#include "model/tokenizer/jinja/machine.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <cmath>

namespace troupe::jinja {
namespace {

constexpr std::size_t max_steps = 5'000'000, max_text = 64u << 20, bytes_a_step = 64;
constexpr int max_depth = 600;
constexpr std::string_view nowhere = "chat template: "; // how value.cpp's errors begin

struct loop_state {
  std::vector<value> items;
  std::size_t at = 0;
  int depth = 0;
  std::optional<std::vector<value>> changed;
};

value at_or_undefined(const std::vector<value>& items, std::size_t i, const char* name) {
  return i < items.size() ? items[i] : value::undefined_named(name);
}

value loop_attribute(machine& m, const std::shared_ptr<loop_state>& s, std::string_view name) {
  const auto i = static_cast<std::int64_t>(s->at), n = static_cast<std::int64_t>(s->items.size());
  if (name == "index")
    return value::integer(i + 1);
  if (name == "index0")
    return value::integer(i);
  if (name == "revindex")
    return value::integer(n - i);
  if (name == "revindex0")
    return value::integer(n - i - 1);
  if (name == "first")
    return value::boolean(i == 0);
  if (name == "last")
    return value::boolean(i + 1 == n);
  if (name == "length")
    return value::integer(n);
  if (name == "previtem")
    return s->at == 0 ? value::undefined_named("there is no previous item") : s->items[s->at - 1];
  if (name == "nextitem")
    return at_or_undefined(s->items, s->at + 1, "there is no next item");
  if (name == "depth")
    return value::integer(s->depth + 1);
  if (name == "depth0")
    return value::integer(s->depth);
  if (name == "cycle")
    return value::function("loop.cycle", [s](machine& inner, arguments& args) {
      if (args.positional.empty())
        inner.fail("loop.cycle without items");
      return args.positional[s->at % args.positional.size()];
    });
  if (name == "changed")
    return value::function("loop.changed", [s](machine&, arguments& args) {
      const bool same = s->changed && std::equal(s->changed->begin(), s->changed->end(), args.positional.begin(), args.positional.end(),
                                                 [](const value& a, const value& b) { return equal(a, b); });
      s->changed = args.positional;
      return value::boolean(!same);
    });
  if (name.starts_with("_"))
    m.unsupported("loop." + std::string(name));
  return value::undefined_named("loop." + std::string(name));
}

} // namespace

machine::level::level(machine& m) : machine_(m) {
  if (++m.depth_ > max_depth) {
    --m.depth_;
    m.fail("expressions, blocks and calls nested deeper than " + std::to_string(max_depth));
  }
}

class machine::inside {
public:
  explicit inside(machine& m, std::shared_ptr<scope> parent) : machine_(m), outer_(m.scope_) {
    m.scope_ = std::make_shared<scope>();
    m.scope_->parent = std::move(parent);
  }
  explicit inside(machine& m) : inside(m, m.scope_) {}
  ~inside() { machine_.scope_ = outer_; }
  inside(const inside&) = delete;
  inside& operator=(const inside&) = delete;

private:
  machine& machine_;
  std::shared_ptr<scope> outer_;
};

void machine::fail(const std::string& what, errc code) const {
  throw error(code, program_.name + ":" + std::to_string(line_) + ": " + what);
}

void machine::charge(std::size_t steps) {
  steps_ += steps;
  if (steps_ > max_steps)
    fail("the template does more than " + std::to_string(max_steps) + " steps");
}

value machine::text(std::string s) {
  charge(1 + s.size() / bytes_a_step);
  if (s.size() > max_text)
    fail("a text of more than " + std::to_string(max_text) + " bytes");
  return value::string(std::move(s));
}

void machine::write(std::string_view s) {
  charge(1 + s.size() / bytes_a_step);
  if (out_->size() + s.size() > max_text)
    fail("more than " + std::to_string(max_text) + " bytes of output");
  out_->append(s);
}

std::string machine::run(std::shared_ptr<scope> variables) {
  std::string out;
  scope_ = std::move(variables);
  out_ = &out;
  whole_ = &out;
  try {
    execute(program_.statements);
  } catch (const error& e) {
    // What knows values alone does not know where it is.
    const std::string_view what = e.what();
    if (what.starts_with(nowhere))
      fail(std::string(what.substr(nowhere.size())), e.code());
    throw;
  }
  return out;
}

// --- expressions ---

value machine::evaluate_name(const std::string& name) {
  for (const scope* s = scope_.get(); s != nullptr; s = s->parent.get())
    if (const auto it = s->variables.find(name); it != s->variables.end())
      return it->second;
  if (auto known = global(*this, name))
    return *known;
  if (name == "varargs" || name == "kwargs") // a macro's further arguments
    unsupported("the name " + name);
  return value::undefined_named("\"" + name + "\" is undefined");
}

value machine::make_dict(const std::vector<std::pair<value, value>>& entries) {
  auto map = std::make_shared<mapping>();
  for (const auto& [key, item] : entries) {
    if (hash_key(key).empty())
      fail("a dict's key cannot be a " + type_name(key));
    map->set(key, item);
  }
  return value::dict(std::move(map));
}

value machine::evaluate_collection(const expression& e) {
  std::vector<value> items;
  items.reserve(e.items.size());
  for (const auto& item : e.items)
    items.push_back(evaluate(*item));
  if (e.what != expression_kind::dict)
    return value::list(std::move(items), e.what == expression_kind::list ? kind::list : kind::tuple);
  std::vector<std::pair<value, value>> entries;
  for (std::size_t i = 0; i + 1 < items.size(); i += 2)
    entries.emplace_back(items[i], items[i + 1]);
  return make_dict(entries);
}

value machine::attribute(const value& base, const std::string& name) {
  if (base.is(kind::undefined))
    fail((base.text ? *base.text : "the value is undefined") + "; asked for its attribute \"" + name + "\"");
  if (name.starts_with("_"))
    unsupported("the attribute \"" + name + "\"");
  if (base.is(kind::callable) && base.function_->attribute)
    return base.function_->attribute(*this, name);
  if (base.is(kind::callable))
    unsupported("an attribute of a function (\"" + name + "\")");
  if (base.is(kind::space)) {
    const value* found = base.map->find(value::string(name));
    return found != nullptr ? *found : value::undefined_named("the namespace has no \"" + name + "\"");
  }
  auto bound = method(*this, base, name);
  if (bound.is(kind::undefined) && base.is(kind::dict))
    if (const value* found = base.map->find(value::string(name)))
      return *found;
  return bound.is(kind::undefined) ? value::undefined_named("the " + type_name(base) + " has no \"" + name + "\"") : bound;
}

value machine::item(const value& base, const value& key) {
  if (base.is(kind::undefined))
    fail((base.text ? *base.text : "the value is undefined") + "; asked for its item " +
         (key.is(kind::undefined) ? "undefined" : to_repr(key)));
  if (base.is(kind::dict)) {
    if (const value* found = hash_key(key).empty() ? nullptr : base.map->find(key))
      return *found;
  } else if (base.is(kind::list) || base.is(kind::tuple) || base.is(kind::string)) {
    if (key.is_whole()) {
      const auto n = static_cast<std::int64_t>(base.is(kind::string) ? length(base.str()) : base.items->items.size());
      const std::int64_t i = key.whole < 0 ? key.whole + n : key.whole;
      if (i < 0 || i >= n)
        return value::undefined_named("the " + type_name(base) + " has no item " + std::to_string(key.whole));
      if (!base.is(kind::string))
        return base.items->items[static_cast<std::size_t>(i)];
      charge(base.str().size() / bytes_a_step);
      return value::string(from_characters(std::u32string(1, characters(base.str())[static_cast<std::size_t>(i)])));
    }
  }
  if (key.is(kind::string))
    return attribute(base, key.str());
  return value::undefined_named("the " + type_name(base) + " has no such item");
}

value machine::evaluate_slice(const expression& e) {
  const value base = evaluate(*e.items[0]);
  std::optional<std::int64_t> parts[3];
  for (std::size_t i = 0; i < 3; ++i)
    if (e.items[i + 1]) {
      const value v = evaluate(*e.items[i + 1]);
      if (v.is_whole())
        parts[i] = v.whole;
      else if (!v.is(kind::none))
        fail("a slice's bounds are integers, not " + type_name(v));
    }
  if (base.is(kind::undefined))
    fail((base.text ? *base.text : "the value is undefined") + "; asked for a slice of it");
  const bool is_text = base.is(kind::string);
  if (!is_text && !base.is(kind::list) && !base.is(kind::tuple))
    return value::undefined_named("a " + type_name(base) + " has no slices");
  const auto all = is_text ? characters(base.str()) : std::u32string();
  const auto n = static_cast<std::int64_t>(is_text ? all.size() : base.items->items.size());
  charge(static_cast<std::size_t>(n) / bytes_a_step);
  const std::int64_t step = parts[2].value_or(1);
  if (step == 0)
    fail("a slice's step cannot be 0");
  const auto bound = [&](std::optional<std::int64_t> given, std::int64_t otherwise) {
    if (!given)
      return otherwise;
    const std::int64_t i = *given < 0 ? *given + n : *given;
    return step > 0 ? std::clamp<std::int64_t>(i, 0, n) : std::clamp<std::int64_t>(i, -1, n - 1);
  };
  const std::int64_t begin = bound(parts[0], step > 0 ? 0 : n - 1), end = bound(parts[1], step > 0 ? n : -1);
  std::u32string chosen_text;
  std::vector<value> chosen;
  const std::int64_t stride = std::clamp<std::int64_t>(step, -n - 1, n + 1); // a longer one takes the first item as well
  for (std::int64_t i = begin; step > 0 ? i < end : i > end; i += stride)
    if (is_text)
      chosen_text += all[static_cast<std::size_t>(i)];
    else
      chosen.push_back(base.items->items[static_cast<std::size_t>(i)]);
  return is_text ? text(from_characters(chosen_text)) : value::list(std::move(chosen), base.type);
}

void machine::spread(arguments& args, const value& named) {
  if (!named.is(kind::dict))
    fail("an argument with ** must be a dict, not a " + type_name(named));
  for (const auto& [key, item] : named.map->entries) {
    if (!key.is(kind::string))
      fail("an argument's name must be a string, not a " + type_name(key));
    if (std::any_of(args.named.begin(), args.named.end(), [&k = key.str()](const auto& a) { return a.first == k; }))
      fail("argument \"" + key.str() + "\" is given twice");
    args.named.emplace_back(key.str(), item);
  }
}

arguments machine::evaluate_arguments(const expression& e) {
  arguments args;
  for (std::size_t i = 1; i < e.items.size(); ++i)
    args.positional.push_back(evaluate(*e.items[i]));
  for (const auto& [name, item] : e.named) {
    const value v = evaluate(*item);
    if (name == "*") {
      const auto items = iterate(v);
      args.positional.insert(args.positional.end(), items.begin(), items.end());
    } else if (name == "**") {
      spread(args, v);
    } else {
      args.named.emplace_back(name, v);
    }
  }
  return args;
}

value machine::call(const value& callee, arguments& args) {
  const level guard(*this);
  charge(1);
  if (callee.is(kind::undefined))
    fail((callee.text ? *callee.text : "the value is undefined") + "; it was called");
  if (!callee.is(kind::callable))
    fail("a " + type_name(callee) + " cannot be called");
  return callee.function_->call(*this, args);
}

value machine::evaluate_call(const expression& e, const value* caller) {
  const value callee = evaluate(*e.items[0]);
  auto args = evaluate_arguments(e);
  if (caller != nullptr)
    args.named.emplace_back("caller", *caller);
  line_ = e.line;
  return call(callee, args);
}

value machine::evaluate_compare(const expression& e) {
  value left = evaluate(*e.items[0]);
  for (std::size_t i = 0; i < e.operators.size(); ++i) {
    const value right = evaluate(*e.items[i + 1]);
    const std::string& op = e.operators[i];
    bool holds = false;
    if (op == "==" || op == "!=")
      holds = equal(left, right) == (op == "==");
    else if (op == "in" || op == "not in")
      holds = contains(right, left) == (op == "in");
    else {
      line_ = e.line;
      const int o = order(left, right);
      holds = op == "<" ? o == -1 : op == "<=" ? o == -1 || o == 0 : op == ">" ? o == 1 : o == 1 || o == 0;
    }
    if (!holds)
      return value::boolean(false);
    left = right;
  }
  return value::boolean(true);
}

value machine::evaluate_concat(const expression& e) {
  std::string out;
  for (const auto& item : e.items)
    out += to_text(evaluate(*item));
  return text(std::move(out));
}

value machine::evaluate_filters(const expression& chain, const value& input) {
  const value* outer = std::exchange(filter_input_, &input);
  const value result = evaluate(chain);
  filter_input_ = outer;
  return result;
}

value machine::evaluate_sign(const expression& e) {
  const value v = evaluate(*e.items[0]);
  if (!v.is_number())
    fail("a " + type_name(v) + " has no sign");
  if (v.is(kind::floating))
    return value::floating(e.what == expression_kind::negate ? -v.real : v.real);
  return e.what == expression_kind::negate ? binary("-", value::integer(0), v) : value::integer(v.whole);
}

value machine::evaluate(const expression& e) {
  const level guard(*this);
  charge(1);
  line_ = e.line;
  switch (e.what) {
  case expression_kind::literal:
    return e.literal.is(kind::undefined) && filter_input_ != nullptr ? *filter_input_ : e.literal;
  case expression_kind::name:
    return evaluate_name(e.name);
  case expression_kind::list:
  case expression_kind::tuple:
  case expression_kind::dict:
    return evaluate_collection(e);
  case expression_kind::attribute: {
    const value base = evaluate(*e.items[0]);
    line_ = e.line;
    return attribute(base, e.name);
  }
  case expression_kind::subscript: {
    const value base = evaluate(*e.items[0]), key = evaluate(*e.items[1]);
    line_ = e.line;
    return item(base, key);
  }
  case expression_kind::slice:
    return evaluate_slice(e);
  case expression_kind::call:
    return evaluate_call(e, nullptr);
  case expression_kind::filter: {
    const value input = evaluate(*e.items[0]);
    auto args = evaluate_arguments(e);
    line_ = e.line;
    return filter(e.name, input, args);
  }
  case expression_kind::test: {
    const value input = evaluate(*e.items[0]);
    auto args = evaluate_arguments(e);
    line_ = e.line;
    return value::boolean(test(e.name, input, args));
  }
  case expression_kind::negate:
  case expression_kind::plus:
    return evaluate_sign(e);
  case expression_kind::logical_not:
    return value::boolean(!truthy(evaluate(*e.items[0])));
  case expression_kind::binary: {
    const value a = evaluate(*e.items[0]), b = evaluate(*e.items[1]);
    line_ = e.line;
    return binary(e.name, a, b);
  }
  case expression_kind::concat:
    return evaluate_concat(e);
  case expression_kind::compare:
    return evaluate_compare(e);
  case expression_kind::logical_and: {
    const value a = evaluate(*e.items[0]);
    return truthy(a) ? evaluate(*e.items[1]) : a;
  }
  case expression_kind::logical_or: {
    const value a = evaluate(*e.items[0]);
    return truthy(a) ? a : evaluate(*e.items[1]);
  }
  case expression_kind::condition:
    if (truthy(evaluate(*e.items[1])))
      return evaluate(*e.items[0]);
    return e.items.size() > 2 && e.items[2] ? evaluate(*e.items[2])
                                            : value::undefined_named("the inline if has no else and its condition is false");
  }
  return {};
}

// --- statements ---

machine::flow machine::execute(const body& statements) {
  for (const auto& s : statements)
    if (const flow f = execute(s); f != flow::on)
      return f;
  return flow::on;
}

std::string machine::captured(const body& statements) {
  std::string out;
  std::string* outer = std::exchange(out_, &out);
  const inside frame(*this);
  if (execute(statements) != flow::on)
    unsupported("break or continue out of a block whose text is kept");
  out_ = outer;
  return out;
}

void machine::assign(const expression& target, const value& v) {
  if (target.what == expression_kind::name) {
    scope_->variables[target.name] = v;
  } else if (target.what == expression_kind::attribute) {
    const value base = evaluate(*target.items[0]);
    if (!base.is(kind::space))
      fail("only a namespace's attributes can be set, not a " + type_name(base) + "'s");
    if (target.name.starts_with("_"))
      unsupported("the attribute \"" + target.name + "\"");
    base.map->set(value::string(target.name), v);
  } else {
    const auto items = iterate(v);
    if (items.size() != target.items.size())
      fail("expected " + std::to_string(target.items.size()) + " values to unpack, found " + std::to_string(items.size()));
    for (std::size_t i = 0; i < items.size(); ++i)
      assign(*target.items[i], items[i]);
  }
}

value machine::make_macro(const statement& s, const std::string& name) {
  // The scope holds the macro, so the macro only points back; the machine keeps the scope for calls from elsewhere.
  if (kept_.empty() || kept_.back() != scope_)
    kept_.push_back(scope_);
  return value::function(name, [&s, name, home = std::weak_ptr(scope_)](machine& m, arguments& args) {
    const inside frame(m, home.lock());
    auto& variables = m.scope_->variables;
    if (args.positional.size() > s.parameters.size())
      m.fail("macro " + name + " takes " + std::to_string(s.parameters.size()) + " arguments, not " +
             std::to_string(args.positional.size()));
    for (std::size_t i = 0; i < args.positional.size(); ++i)
      variables[s.parameters[i].first] = args.positional[i];
    for (const auto& [key, item] : args.named) {
      const bool known =
          key == "caller" || std::any_of(s.parameters.begin(), s.parameters.end(), [&k = key](const auto& p) { return p.first == k; });
      if (!known || !variables.emplace(key, item).second)
        m.fail("macro " + name + " takes no argument \"" + key + "\", or takes it once");
    }
    for (const auto& [key, otherwise] : s.parameters)
      if (!variables.contains(key)) {
        value v = otherwise ? m.evaluate(*otherwise) : value::undefined_named("parameter \"" + key + "\" was not provided");
        m.scope_->variables[key] = std::move(v);
      }
    return m.text(m.captured(s.inner));
  });
}

std::vector<value> machine::loop_items(const statement& s, const value& over) {
  auto items = iterate(over);
  if (!s.test)
    return items;
  std::vector<value> kept;
  for (auto& item : items) {
    const inside frame(*this);
    assign(*s.target, item);
    if (truthy(evaluate(*s.test)))
      kept.push_back(std::move(item));
  }
  return kept;
}

machine::flow machine::execute_loop(const statement& s, const value& over, int depth) {
  auto state = std::make_shared<loop_state>();
  state->items = loop_items(s, over);
  state->depth = depth;
  value loop = value::function("loop", [&s, depth, home = scope_](machine& m, arguments& args) {
    if (!s.recursive || args.positional.size() != 1)
      m.fail("only a recursive loop can be called, with one argument");
    std::string out;
    std::string* outer = std::exchange(m.out_, &out);
    const inside frame(m, home);
    m.execute_loop(s, args.positional[0], depth + 1);
    m.out_ = outer;
    return m.text(std::move(out));
  });
  loop.function_->attribute = [state](machine& m, std::string_view name) { return loop_attribute(m, state, name); };
  for (; state->at < state->items.size(); ++state->at) {
    charge(1);
    const inside frame(*this);
    scope_->variables["loop"] = loop;
    assign(*s.target, state->items[state->at]);
    if (execute(s.inner) == flow::broken)
      break;
  }
  if (state->items.empty()) {
    const inside frame(*this);
    return execute(s.other);
  }
  return flow::on;
}

machine::flow machine::execute(const statement& s) {
  const level guard(*this);
  charge(1);
  line_ = s.line;
  switch (s.what) {
  case statement_kind::text:
    write(s.name);
    break;
  case statement_kind::output:
    write(to_text(evaluate(*s.value)));
    break;
  case statement_kind::branch:
    return execute(truthy(evaluate(*s.value)) ? s.inner : s.other);
  case statement_kind::loop:
    return execute_loop(s, evaluate(*s.value), 0);
  case statement_kind::set:
    assign(*s.target, evaluate(*s.value));
    break;
  case statement_kind::set_block: {
    const value made = text(captured(s.inner));
    assign(*s.target, s.value ? evaluate_filters(*s.value, made) : made);
    break;
  }
  case statement_kind::macro:
    scope_->variables[s.name] = make_macro(s, s.name);
    break;
  case statement_kind::call_block: {
    const value caller = make_macro(s, "caller");
    write(to_text(evaluate_call(*s.value, &caller)));
    break;
  }
  case statement_kind::filter_block: {
    const value made = text(captured(s.inner));
    write(to_text(evaluate_filters(*s.value, made)));
    break;
  }
  case statement_kind::with: {
    std::vector<value> values;
    for (const auto& [name, item] : s.parameters)
      values.push_back(evaluate(*item));
    const inside frame(*this);
    for (std::size_t i = 0; i < values.size(); ++i)
      scope_->variables[s.parameters[i].first] = values[i];
    return execute(s.inner);
  }
  case statement_kind::generation: {
    const auto said = captured(s.inner);
    generated_.emplace_back(whole_->size(), whole_->size() + said.size());
    write(said);
    break;
  }
  case statement_kind::break_loop:
    return flow::broken;
  case statement_kind::continue_loop:
    return flow::continued;
  }
  return flow::on;
}

} // namespace troupe::jinja
