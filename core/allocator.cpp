#include "core/allocator.hpp"
#include <malloc.h>

namespace troupe {

void keep_freed_pages() {
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

} // namespace troupe
