#pragma once
#include <string_view>

namespace troupe {

/// The report's page around its data: head, style and script; `write_report` puts one JSON object between the two halves.
extern const std::string_view report_page_begin, report_page_end;

} // namespace troupe
