#include "model/tokenizer/jinja/token_cursor.hpp"

namespace troupe::jinja {

namespace {

std::string brief(std::string text) {
  if (text.size() > 40)
    text.replace(37, std::string::npos, "...");
  return text;
}

} // namespace

std::string describe(const token& t) {
  switch (t.what) {
  case token_kind::text:
    return "text";
  case token_kind::block_begin:
    return "{%";
  case token_kind::block_end:
    return "%}";
  case token_kind::output_begin:
    return "{{";
  case token_kind::output_end:
    return "}}";
  case token_kind::end:
    return "the template's end";
  default:
    return '"' + brief(t.text) + '"';
  }
}

void token_cursor::expect_op(std::string_view text) {
  if (!take_op(text))
    fail("expected \"" + std::string(text) + "\", found " + describe(now()));
}

void token_cursor::expect_name(std::string_view text) {
  if (!take_name(text))
    fail("expected \"" + std::string(text) + "\", found " + describe(now()));
}

void token_cursor::expect(token_kind what, const std::string& wanted) {
  if (now().what != what)
    fail("expected " + wanted + ", found " + describe(now()));
  advance();
}

std::string token_cursor::identifier() {
  if (now().what != token_kind::name)
    fail("expected a name, found " + describe(now()));
  return advance().text;
}

void token_cursor::fail(const std::string& what, errc code) const {
  throw error(code, name_ + ":" + std::to_string(now().line) + ": " + what);
}

void token_cursor::unsupported(const std::string& what) const { fail(what + " is not supported in chat templates", errc::unsupported); }

} // namespace troupe::jinja
