#pragma once
#include "model/tokenizer/jinja/machine.hpp"

namespace troupe::jinja {

/// What filters make of their input as text. Fails for what went through safe.
std::string soft_text(machine& m, const value& v);

// Filters of text, as jinja2 has them.
value center_filter(machine& m, const value& v, arguments& args);
value escape_filter(machine& m, const value& v, arguments& args);
value format_filter(machine& m, const value& v, arguments& args);
value indent_filter(machine& m, const value& v, arguments& args);
value title_filter(machine& m, const value& v, arguments& args);
value truncate_filter(machine& m, const value& v, arguments& args);
value wordcount_filter(machine& m, const value& v, arguments& args);

} // namespace troupe::jinja
