// One rank in a process of its own, for the tests: parallel_worker RANK SIZE TASK ...
// Prints its endpoint, reads everyone's, does the task and prints one line.
#include "core/error.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/parallel/model_support.hpp"
#include "model/parallel/process_model.hpp"
#include "model/parallel/reduce.hpp"
#include "model/parallel/whole_tensors.hpp"
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

// The whole model's gradients, in its tensors' order; other ranks take part.
std::uint64_t digest_of_gradients(causal_lm& model, const process_ranks& ranks) {
  const whole_tensors all(model, ranks.place());
  std::uint64_t digest = rank_digest{}.grads;
  std::vector<float> whole;
  for (std::size_t i = 0; i < all.size(); ++i) {
    all.gather(
        i, [](const parameter& p, std::size_t) { return std::span<const float>(p.grad); }, whole);
    add_bits(digest, whole);
  }
  return digest;
}

// The first rank uses the model as one; the others follow it.
void share(const std::shared_ptr<zmq_world>& world, int rank, const mesh& shape, bool sequence, dtype type, const model_config& cfg) {
  process_ranks ranks(world, rank, shape);
  compute where(1);
  std::shared_ptr<causal_lm> own;
  const auto model = make_process_model("model", cfg, {type, true, {"*"}, nullptr}, sequence, ranks, where, &own);
  fill_by_name(*own);
  ranks.on("gradients", [&](byte_reader&) { digest_of_gradients(*model, ranks); });
  ranks.on("end", [](byte_reader&) {
    std::cout << "followed" << std::endl;
    std::exit(0);
  });
  if (!ranks.leads())
    ranks.serve();
  rank_digest digest = digest_of_use(*model);
  ranks.run("gradients", "", [&] { digest.grads = digest_of_gradients(*model, ranks); });
  std::cout << digest.text() << std::endl;
  ranks.run("end", "", [] {});
}

int run(const std::vector<std::string>& arguments) {
  const int rank = std::stoi(arguments[0]), size = std::stoi(arguments[1]);
  const std::string& task = arguments[2];
  const auto deadline = communicator_deadline(task == "wait" ? std::stoi(arguments[3]) : 60000);
  const auto shared = std::make_shared<zmq_world>(rank, size, "secret", deadline);
  zmq_world& world = *shared;
  std::cout << world.endpoint() << std::endl;
  std::vector<std::string> endpoints(static_cast<std::size_t>(size));
  for (auto& e : endpoints)
    std::getline(std::cin, e);
  world.connect(endpoints);
  if (task == "model" || task == "share") { // PP DP TP SP DTYPE MODEL
    const mesh shape{std::stoi(arguments[3]), std::stoi(arguments[4]), std::stoi(arguments[5])};
    const bool sequence = arguments[6] == "1";
    const dtype type = arguments[7] == "f32" ? dtype::f32 : dtype::bf16;
    const model_config cfg = arguments[8] == "llama" ? tiny_llama(2, true) : split_of_two_widths();
    if (task == "share")
      share(shared, rank, shape, sequence, type, cfg);
    else
      std::cout << digest_of_rank(cfg, type, make_context(world, rank, shape), sequence).text() << std::endl;
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
