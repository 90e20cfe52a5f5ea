#include "rollout/generate_all.hpp"
#include <algorithm>
#include <map>
#include <utility>

namespace troupe {

namespace {

// Keeps what ended early until all before it have.
class in_order {
public:
  in_order(std::vector<std::int64_t> samples, const std::function<void(generation_output&&)>& done)
      : samples_(std::move(samples)), done_(done) {}

  void add(generation_output&& o) {
    held_.emplace(std::pair{o.id, o.sample_index}, std::move(o));
    for (auto it = held_.find(next_); it != held_.end(); it = held_.find(next_)) {
      done_(std::move(it->second));
      held_.erase(it);
      if (++next_.second == samples_[next_.first])
        next_ = {next_.first + 1, 0};
    }
  }

private:
  std::vector<std::int64_t> samples_; // of each request
  const std::function<void(generation_output&&)>& done_;
  std::map<std::pair<std::uint64_t, std::int64_t>, generation_output> held_;
  std::pair<std::uint64_t, std::int64_t> next_{0, 0};
};

} // namespace

bool generate_all(generator& g, std::vector<generation_request> requests, const std::function<void(generation_output&&)>& done,
                  const std::function<bool()>& stop) {
  std::vector<std::int64_t> samples;
  for (const auto& r : requests)
    samples.push_back(r.n);
  in_order order(samples, done);
  // Twice as many as may run keep the generator's choice; more only cost.
  const std::int64_t most = 2 * g.max_num_seqs();
  std::int64_t under_way = 0;
  for (std::size_t next = 0; next < requests.size() || !g.idle();) {
    for (; next < requests.size() && (under_way == 0 || under_way + samples[next] <= most); ++next) {
      requests[next].id = next;
      g.add(std::move(requests[next]));
      under_way += samples[next];
    }
    if (stop && stop())
      return false;
    for (auto& o : g.step()) {
      --under_way;
      order.add(std::move(o));
    }
  }
  return true;
}

} // namespace troupe
