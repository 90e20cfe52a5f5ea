// One rank with a GPU, or a share of one, for the tests: device_worker RANK SIZE TASK DEADLINE-MS
// Prints its endpoint, reads everyone's, does the task and prints a line for each of its parts.
#include "core/error.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/parallel/device_communicator.hpp"
#include "model/parallel/reduce.hpp"
#include "model/parallel/test_support.hpp"
#include <cstdio>
#include <cstring>
#include <iostream>
#include <limits>
#include <numeric>
#include <random>

namespace troupe {
namespace {

using kernels::bf16;
using ints = std::vector<std::int32_t>;

template <class T>
cuda::device_buffer put(const std::vector<T>& values) {
  cuda::device_buffer buffer(values.size() * sizeof(T));
  buffer.upload(values.data());
  return buffer;
}

template <class T>
std::vector<T> get(const cuda::device_buffer& buffer) {
  std::vector<T> values(buffer.size() / sizeof(T));
  buffer.download(values.data());
  return values;
}

/// What rank `from` gives rank `to`.
ints pattern(int from, int to, std::size_t n) {
  ints v(n);
  std::iota(v.begin(), v.end(), 1000003 * from + 7919 * to);
  return v;
}

void expect(bool same, const std::string& what) {
  if (!same)
    throw error(errc::failed, what + " gave other bytes");
}

void append(ints& all, const ints& more) { all.insert(all.end(), more.begin(), more.end()); }

void gather_and_exchange(device_communicator& c, std::size_t count, cuda::stream where) {
  const int n = c.size(), me = c.rank();
  const auto mine = put(pattern(me, 0, count));
  cuda::device_buffer all(count * std::size_t(n) * 4);
  c.all_gather(mine.data(), all.data(), count * 4, where, "a gather");
  c.wait(where, "a gather");
  ints expected, out, in;
  for (int r = 0; r < n; ++r) {
    append(expected, pattern(r, 0, count));
    append(out, pattern(me, r, count));
    append(in, pattern(r, me, count));
  }
  expect(get<std::int32_t>(all) == expected, "all_gather");
  const auto from = put(out);
  c.all_to_all(from.data(), all.data(), count * 4, where, "an exchange");
  c.wait(where, "an exchange");
  expect(get<std::int32_t>(all) == in, "all_to_all");
}

void broadcast_and_chain(device_communicator& c, std::size_t count, cuda::stream where) {
  const int n = c.size(), me = c.rank();
  for (int root = 0; root < n; ++root) {
    const auto data = put(pattern(me, root, count));
    c.broadcast(data.data(), count * 4, root, where, "a broadcast");
    c.wait(where, "a broadcast");
    expect(get<std::int32_t>(data) == pattern(root, root, count), "broadcast");
  }
  // Everyone to the next one and from the one before, two messages each, in order.
  const int next = (me + 1) % n, before = (me + n - 1) % n;
  const auto first = put(pattern(me, 0, count)), second = put(pattern(me, 1, count));
  cuda::device_buffer got(count * 4), after(count * 4);
  c.group("the ring", [&] {
    c.send(first.data(), count * 4, next, where, "the first");
    c.send(second.data(), count * 4, next, where, "the second");
    c.recv(got.data(), count * 4, before, where, "the first");
    c.recv(after.data(), count * 4, before, where, "the second");
  });
  c.wait(where, "the ring");
  expect(get<std::int32_t>(got) == pattern(before, 0, count) && get<std::int32_t>(after) == pattern(before, 1, count), "send and recv");
}

// ---- sums: what the CPU's ranks get, to the last bit ----

template <class T>
std::vector<T> numbers(int rank, std::int64_t count) {
  std::mt19937 rng(unsigned(rank) + 5);
  std::normal_distribution<float> normal(0, 100);
  std::vector<T> v(static_cast<std::size_t>(count));
  for (T& x : v)
    if constexpr (std::is_same_v<T, float>)
      x = normal(rng);
    else
      x = kernels::narrow(normal(rng));
  if (count > 100) { // what no sum may lose or invent
    const float odd[] = {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), -0.f, 1e-40f, 3.39e38f};
    const auto put = [&](std::size_t at, float x) {
      if constexpr (std::is_same_v<T, float>)
        v[at] = x;
      else
        v[at] = kernels::narrow(x);
    };
    for (std::size_t i = 0; i < 5; ++i)
      put(i + std::size_t(rank), odd[i]);
    put(20, 1e-39f); // and what counts as zero
    put(21, rank == 0 ? 1.5e-38f : -1.4e-38f / float(rank));
  }
  return v;
}

/// A NaN's payload is the processor's business, in f32.
template <class T>
void expect_bits(const std::vector<T>& got, const std::vector<T>& wanted, const std::string& what) {
  expect(got.size() == wanted.size(), what);
  for (std::size_t i = 0; i < got.size(); ++i) {
    const float x = kernels::widen(got[i]), y = kernels::widen(wanted[i]);
    if (std::memcmp(&got[i], &wanted[i], sizeof(T)) != 0 && !(x != x && y != y)) {
      char text[100];
      std::snprintf(text, sizeof text, ": element %zu is %a, not %a; it", i, double(x), double(y));
      expect(false, what + text);
    }
  }
}

template <class T>
void sums(device_communicator& c, dtype type, std::int64_t count, cuda::stream where) {
  const int n = c.size(), me = c.rank();
  thread_world world;
  const auto ranks = world.group("reference", n);
  std::vector<std::vector<T>> reduced(static_cast<std::size_t>(n)), scattered(static_cast<std::size_t>(n));
  const std::int64_t slice = count / n;
  for (const auto& result : run_ranks(n, [&](int r) {
         thread_pool pool(1);
         auto& whole = reduced[std::size_t(r)] = numbers<T>(r, count);
         scattered[std::size_t(r)].resize(std::size_t(slice));
         reduce_scatter(*ranks[std::size_t(r)], pool, whole.data(), slice, scattered[std::size_t(r)].data(), "the reference");
         all_reduce(*ranks[std::size_t(r)], pool, whole.data(), count, "the reference");
       }))
    expect(result.text.empty(), result.text);
  const auto data = put(numbers<T>(me, count));
  const cuda::device_buffer scratch(std::max(all_reduce_scratch_bytes(n, type, count), std::size_t(slice * n) * sizeof(T)));
  const cuda::device_buffer own(std::size_t(slice) * sizeof(T));
  reduce_scatter(c, type, data.data(), slice, own.data(), scratch.data(), where, "a scattered sum");
  all_reduce(c, type, data.data(), count, scratch.data(), where, "a sum");
  c.wait(where, "a sum");
  const std::string what = std::string(name_of(type)) + " [" + std::to_string(count) + "]";
  expect_bits(get<T>(own), scattered[std::size_t(me)], "reduce_scatter of " + what);
  expect_bits(get<T>(data), reduced[std::size_t(me)], "all_reduce of " + what);
}

// ---- tasks ----

void primitives(device_communicator& c, cuda::stream where) {
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{33}, std::size_t{70001}, std::size_t{3} << 20}) {
    gather_and_exchange(c, count, where);
    broadcast_and_chain(c, count, where);
  }
  for (const std::int64_t count : {1, 7, 1025, 40000, 300001, 1 << 20}) {
    sums<float>(c, dtype::f32, count, where);
    sums<bf16>(c, dtype::bf16, count, where);
  }
  std::cout << "the same bytes" << std::endl;
}

/// The others may be killed, stopped or told to abort before "go".
void wait_for_others(device_communicator& c, cuda::stream where) {
  cuda::device_buffer mine(1 << 20), all((1 << 20) * std::size_t(c.size()));
  c.all_gather(mine.data(), all.data(), mine.size(), where, "the start");
  c.wait(where, "the start");
  std::cout << "ready" << std::endl;
  std::string go;
  std::getline(std::cin, go);
  if (go == "abort") {
    c.abort("the user stopped it");
    return;
  }
  c.all_gather(mine.data(), all.data(), mine.size(), where, "what comes after");
  c.wait(where, "what comes after");
}

int run(const std::vector<std::string>& arguments) {
  const int rank = std::stoi(arguments[0]), size = std::stoi(arguments[1]);
  const std::string& task = arguments[2];
  const communicator_deadline deadline(std::stoi(arguments[3]));
  zmq_world world(rank, size, "secret", communicator_deadline(60000));
  std::cout << world.endpoint() << std::endl;
  std::vector<std::string> endpoints(static_cast<std::size_t>(size));
  for (auto& e : endpoints)
    std::getline(std::cin, e);
  world.connect(endpoints);
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  const auto group = world.group("test", ranks);
  cuda::set_device(rank % cuda::device_count());
  group->barrier("the devices");
  if (task == "absent" && rank == 1) { // never joins
    std::cout << "absent" << std::endl;
    std::string end;
    std::getline(std::cin, end);
    return 0;
  }
  const auto c = make_nccl_communicator(group, "test", deadline);
  const cuda::stream_owner where;
  if (task == "primitives")
    primitives(*c, where.get());
  else
    wait_for_others(*c, where.get());
  return 0;
}

} // namespace
} // namespace troupe

int main(int argc, char** argv) {
  try {
    return troupe::run({argv + 1, argv + argc});
  } catch (const troupe::error& e) {
    std::cout << e.what() << std::endl;
    return 3;
  }
}
