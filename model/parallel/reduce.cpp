#include "model/parallel/reduce.hpp"
#include "model/kernels/thread_pool.hpp"
#include <algorithm>
#include <type_traits>
#include <vector>

namespace troupe {

using kernels::bf16;

namespace {

// Below this an all_gather of everything is one message fewer.
constexpr std::size_t small_bytes = 64 << 10;

template <class T>
T rounded(float x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else
    return kernels::narrow(x);
}

} // namespace

template <class T>
void sum_parts(thread_pool& pool, const T* parts, int n_parts, std::int64_t count, T* out) {
  pool.split((count + 1023) / 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      const std::int64_t at = c * 1024, n = std::min<std::int64_t>(1024, count - at);
      float sum[1024];
      for (std::int64_t i = 0; i < n; ++i)
        sum[i] = kernels::widen(parts[at + i]);
      for (int p = 1; p < n_parts; ++p) {
        const T* part = parts + p * count + at;
        for (std::int64_t i = 0; i < n; ++i)
          sum[i] += kernels::widen(part[i]);
      }
      for (std::int64_t i = 0; i < n; ++i)
        out[at + i] = rounded<T>(sum[i]);
    }
  });
}

template <class T>
void reduce_scatter(communicator& group, thread_pool& pool, const T* parts, std::int64_t count, T* out, std::string_view what) {
  std::vector<T> all(std::size_t(count) * std::size_t(group.size()));
  group.all_to_all(parts, all.data(), std::size_t(count) * sizeof(T), what);
  sum_parts(pool, all.data(), group.size(), count, out);
}

template <class T>
void all_reduce(communicator& group, thread_pool& pool, T* data, std::int64_t count, std::string_view what) {
  const auto n = std::int64_t(group.size());
  if (std::size_t(count) * sizeof(T) <= small_bytes) {
    std::vector<T> all(std::size_t(count * n));
    group.all_gather(data, all.data(), std::size_t(count) * sizeof(T), what);
    return sum_parts(pool, all.data(), group.size(), count, data);
  }
  // Each rank adds up a chunk; the last one is padded.
  const std::int64_t chunk = (count + n - 1) / n;
  std::vector<T> parts(std::size_t(chunk * n)), mine(static_cast<std::size_t>(chunk));
  std::copy(data, data + count, parts.begin());
  reduce_scatter(group, pool, parts.data(), chunk, mine.data(), what);
  group.all_gather(mine.data(), parts.data(), std::size_t(chunk) * sizeof(T), what);
  std::copy(parts.begin(), parts.begin() + count, data);
}

template <class T>
void add_rounded(thread_pool& pool, const T* x, std::int64_t count, T* y) {
  pool.split(count, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      y[i] = rounded<T>(kernels::widen(y[i]) + kernels::widen(x[i]));
  });
}

#define RG_INSTANCE(T)                                                                                                                     \
  template void sum_parts(thread_pool&, const T*, int, std::int64_t, T*);                                                                  \
  template void reduce_scatter(communicator&, thread_pool&, const T*, std::int64_t, T*, std::string_view);                                 \
  template void all_reduce(communicator&, thread_pool&, T*, std::int64_t, std::string_view);                                               \
  template void add_rounded(thread_pool&, const T*, std::int64_t, T*);
RG_INSTANCE(bf16)
RG_INSTANCE(float)
#undef RG_INSTANCE

} // namespace troupe
