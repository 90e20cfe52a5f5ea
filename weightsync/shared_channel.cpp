#include "core/error.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/version_text.hpp"
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

namespace troupe {
namespace {

using std::chrono::steady_clock;

/// What source and sink share; any thread under the mutex.
struct shared_state {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<weights_version> published;
  bool closed = false;
  int n_holders = 0;                                       // that read the values
  std::map<const void*, std::function<void()>> on_retract; // by sink
};

class shared_source final : public weights_source {
public:
  explicit shared_source(std::shared_ptr<causal_lm> model) : model_(std::move(model)), state_(std::make_shared<shared_state>()) {}
  ~shared_source() override {
    const std::lock_guard lock(state_->mutex);
    state_->closed = true;
    state_->changed.notify_all();
  }
  std::string endpoint() const override { return "shared"; }
  void publish(weights_version version) override {
    const std::lock_guard lock(state_->mutex);
    state_->published = version;
    state_->changed.notify_all();
  }
  void retract() override {
    std::vector<std::function<void()>> calls;
    {
      std::unique_lock lock(state_->mutex);
      state_->published.reset();
      state_->changed.wait(lock, [&] { return state_->n_holders == 0; });
      for (const auto& [sink, call] : state_->on_retract)
        calls.push_back(call);
    }
    for (const auto& call : calls)
      call();
  }
  const std::shared_ptr<causal_lm>& model() const { return model_; }
  const std::shared_ptr<shared_state>& state() const { return state_; }

private:
  std::shared_ptr<causal_lm> model_;
  std::shared_ptr<shared_state> state_;
};

class shared_sink final : public weights_sink {
public:
  explicit shared_sink(std::shared_ptr<shared_state> state) : state_(std::move(state)) {}
  ~shared_sink() override {
    const std::lock_guard lock(state_->mutex);
    state_->on_retract.erase(this);
  }

  sync_result fetch(weights_version version, std::chrono::milliseconds deadline) override {
    const auto start = steady_clock::now();
    std::unique_lock lock(state_->mutex);
    const bool settled =
        state_->changed.wait_for(lock, deadline, [&] { return state_->closed || (state_->published && *state_->published >= version); });
    if (!settled)
      throw error(errc::timeout, "waited " + std::to_string(deadline.count()) + " ms for " + text_of(version) + " from shared memory; " +
                                     published_text(state_->published));
    if (state_->closed)
      throw error(errc::peer_lost, text_of(version) + " cannot be had from shared memory: its source is gone");
    if (*state_->published != version)
      throw error(errc::peer_lost, text_of(version) + " was asked of shared memory, which has moved on to " + text_of(*state_->published));
    fetched_ = version;
    return {version, 0, std::chrono::duration<double>(steady_clock::now() - start).count()};
  }

  std::shared_ptr<void> hold() override {
    const std::lock_guard lock(state_->mutex);
    if (!fetched_ || state_->published != fetched_)
      return nullptr;
    ++state_->n_holders;
    return {this, [state = state_](void*) {
              const std::lock_guard lock(state->mutex);
              --state->n_holders;
              state->changed.notify_all();
            }};
  }

  void on_retract(const std::function<void()>& call) override {
    const std::lock_guard lock(state_->mutex);
    state_->on_retract[this] = call;
  }

private:
  std::shared_ptr<shared_state> state_;
  std::optional<weights_version> fetched_;
};

} // namespace

std::unique_ptr<weights_source> make_shared_source(std::shared_ptr<causal_lm> model) {
  return std::make_unique<shared_source>(std::move(model));
}

std::unique_ptr<weights_sink> make_shared_sink(weights_source& source, const std::shared_ptr<causal_lm>& model) {
  const auto* shared = dynamic_cast<shared_source*>(&source);
  if (!shared)
    throw error(errc::bad_input, "a shared sink needs a shared source, and this one is at " + source.endpoint());
  if (shared->model() != model)
    throw error(errc::bad_input, "a shared sink's model must be its source's; use the zmq channel between two models");
  return std::make_unique<shared_sink>(shared->state());
}

} // namespace troupe
