// One rank in a process of its own, for the tests: parallel_worker RANK SIZE TASK ...
// Prints its endpoint, reads everyone's, does the task and prints one line.
#include "core/error.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/parallel/model_support.hpp"
#include "model/parallel/reduce.hpp"
#include <bit>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

namespace troupe {
namespace {

std::vector<int> everyone(int n) {
  std::vector<int> all;
  for (int r = 0; r < n; ++r)
    all.push_back(r);
  return all;
}

void sums(communicator& group) {
  thread_pool pool(1);
  std::vector<float> mine;
  for (int i = 0; i < 50000; ++i)
    mine.push_back(1.f / float(1 + group.rank() * 50000 + i));
  all_reduce(group, pool, mine.data(), std::int64_t(mine.size()), "the sums");
  std::uint64_t digest = 0;
  for (const float v : mine)
    digest = digest * 1099511628211ull + std::bit_cast<std::uint32_t>(v);
  std::cout << digest << std::endl;
  group.barrier("the end");
}

int run(const std::vector<std::string>& arguments) {
  const int rank = std::stoi(arguments[0]), size = std::stoi(arguments[1]);
  const std::string& task = arguments[2];
  const auto deadline = communicator_deadline(task == "wait" ? std::stoi(arguments[3]) : 60000);
  zmq_world world(rank, size, "secret", deadline);
  std::cout << world.endpoint() << std::endl;
  std::vector<std::string> endpoints(static_cast<std::size_t>(size));
  for (auto& e : endpoints)
    std::getline(std::cin, e);
  world.connect(endpoints);
  if (task == "model") { // PP TP SP DTYPE MODEL
    const mesh shape{std::stoi(arguments[3]), 1, std::stoi(arguments[4])};
    const rank_context ranks = make_context(world, rank, shape);
    const dtype type = arguments[6] == "f32" ? dtype::f32 : dtype::bf16;
    std::cout
        << digest_of_rank(arguments[7] == "llama" ? tiny_llama(2, true) : split_of_two_widths(), type, ranks, arguments[5] == "1").text()
        << std::endl;
    return 0;
  }
  const auto group = world.group("test", everyone(size));
  if (task == "sums") {
    sums(*group);
    return 0;
  }
  group->barrier("the start");
  std::cout << "ready" << std::endl;
  std::string go;
  std::getline(std::cin, go);
  group->barrier("after the kill");
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
