#pragma once
#include "core/error.hpp"
#include "model/tokenizer/jinja/lexer.hpp"
#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::jinja {

/// A place in a template's tokens, which end in one of kind `end`. `name`: the template's, for errors; it outlives the cursor.
/// take_*: whether it is there, and past it then; expect_*: past it, or errc::bad_input with name and line.
class token_cursor {
public:
  token_cursor(std::vector<token> tokens, const std::string& name) : tokens_(std::move(tokens)), name_(name) {}

  const std::string& name() const { return name_; }
  const token& now() const { return tokens_[at_]; }
  const token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  /// The token that was `now()`, which is not `end`.
  const token& advance() { return tokens_[at_++]; }

  bool is_op(std::string_view text) const { return now().what == token_kind::op && now().text == text; }
  bool is_name(std::string_view text) const { return now().what == token_kind::name && now().text == text; }
  bool is_name(std::initializer_list<std::string_view> names) const {
    return std::any_of(names.begin(), names.end(), [this](auto n) { return is_name(n); });
  }
  bool take_op(std::string_view text) { return is_op(text) && ++at_ > 0; }
  bool take_name(std::string_view text) { return is_name(text) && ++at_ > 0; }

  void expect_op(std::string_view text);
  void expect_name(std::string_view text);
  void expect(token_kind what, const std::string& wanted);
  std::string identifier();

  [[noreturn]] void fail(const std::string& what, errc code = errc::bad_input) const;
  /// fail with errc::unsupported.
  [[noreturn]] void unsupported(const std::string& what) const;

private:
  std::vector<token> tokens_;
  const std::string& name_;
  std::size_t at_ = 0;
};

/// What a syntax error calls the token.
std::string describe(const token& t);

} // namespace troupe::jinja
