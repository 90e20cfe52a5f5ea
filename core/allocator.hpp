#pragma once

namespace troupe {

/// Makes malloc keep the pages of activations, which come and go by the megabyte, instead of asking the system for them
/// again. Call once, before threads start.
void keep_freed_pages();

} // namespace troupe
