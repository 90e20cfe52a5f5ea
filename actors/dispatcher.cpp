#include "actors/dispatcher.hpp"
#include <algorithm>

namespace troupe {

void dispatcher::open(std::uint32_t step, bool validation, std::uint32_t count) {
  waiting_.clear();
  in_flight_.clear();
  for (auto& [id, w] : workers_)
    w.busy = 0;
  for (std::uint32_t i = 0; i < count; ++i)
    waiting_.insert(group_key{step, i, validation});
}

void dispatcher::holds(worker_id id, weights_version version) {
  if (const auto it = workers_.find(id); it != workers_.end()) {
    it->second.current = true;
    it->second.version = version;
  }
}

void dispatcher::remove_worker(worker_id id) {
  if (workers_.erase(id) == 0)
    return;
  for (auto it = in_flight_.begin(); it != in_flight_.end();) {
    if (it->second.worker == id) {
      waiting_.insert(it->first);
      it = in_flight_.erase(it);
    } else {
      ++it;
    }
  }
}

std::vector<dispatcher::assignment> dispatcher::assign(time_point now) {
  std::vector<assignment> out;
  while (!waiting_.empty()) {
    worker_id chosen = 0;
    worker* best = nullptr;
    for (auto& [id, w] : workers_) {
      if (w.current && w.version == version_ && w.busy < credits_ && (best == nullptr || w.busy < best->busy)) {
        chosen = id;
        best = &w;
      }
    }
    if (best == nullptr)
      break;
    const group_key key = *waiting_.begin();
    waiting_.erase(waiting_.begin());
    in_flight_[key] = holder{chosen, now};
    ++best->busy;
    out.push_back({chosen, key});
  }
  return out;
}

bool dispatcher::answered(const group_key& key) {
  if (waiting_.erase(key) != 0) // made by a worker that was given up too early
    return true;
  const auto it = in_flight_.find(key);
  if (it == in_flight_.end())
    return false;
  if (const auto w = workers_.find(it->second.worker); w != workers_.end() && w->second.busy > 0)
    --w->second.busy;
  in_flight_.erase(it);
  return true;
}

std::vector<worker_id> dispatcher::overdue(time_point now) const {
  std::vector<worker_id> out;
  for (const auto& [key, held] : in_flight_) {
    if (now - held.since >= deadline_ && std::find(out.begin(), out.end(), held.worker) == out.end())
      out.push_back(held.worker);
  }
  return out;
}

} // namespace troupe
