#pragma once
#include "rollout/generator.hpp"
#include <array>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

namespace troupe {

/// How often something took how long, in seconds, by upper bounds.
struct latency_histogram {
  static constexpr std::array<double, 14> bounds{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300};
  std::array<std::uint64_t, bounds.size() + 1> counts{}; // of values up to bounds[i] and above bounds[i - 1]; the last: above all
  double sum = 0;
  void add(double seconds);
};

/// What a desk did since it was made, and what is under way.
struct engine_counts {
  generator_counts generator;
  std::optional<weights_version> version;                // of a run's policy; none: the weights are of no run
  std::int64_t waiting = 0, running = 0;                 // requests without and with a first token
  std::uint64_t prompt_tokens = 0, output_tokens = 0;    // a request's prompt once, whatever n
  std::uint64_t stopped = 0, at_length = 0, aborted = 0; // samples, by how they ended
  std::uint64_t refused = 0;                             // requests, for a full queue
  std::uint64_t given_up = 0;                            // submissions whose stream went away before their end
  latency_histogram first_token, whole;                  // of requests, since they came
};

/// A token, or a sample that ended; `id` counts the requests of one submission, from 0.
using generation_event = std::variant<streamed_token, generation_output>;

/// What comes of requests at a desk, which may be gone before it. One thread. Going away gives up what has not ended.
class generation_stream {
public:
  struct mailbox;
  explicit generation_stream(std::shared_ptr<mailbox> box);
  generation_stream(generation_stream&&) = default;
  generation_stream& operator=(generation_stream&&) = delete;
  ~generation_stream();
  /// The next event, waited for until `until`; none: that passed, or all samples have ended. Throws what the generator refused a
  /// request for, errc::cancelled when the engine ends first, errc::failed when a pass of the model failed.
  std::optional<generation_event> next(std::chrono::steady_clock::time_point until);
  /// Every sample's end was handed over.
  bool ended() const;

private:
  std::shared_ptr<mailbox> box_;
};

/// Many threads' requests for a generator that another thread owns: it takes them in between two passes and hands over what ended,
/// tokens go over as they are drawn. What a request gets does not depend on the others, nor on what else the generator does.
class request_desk {
public:
  /// max_waiting: requests without a first token, above which submit refuses. first_id: of the requests at the generator.
  explicit request_desk(std::int64_t max_waiting, std::uint64_t first_id = 0);
  // Any thread.
  /// Takes all or, when the queue is full, none and returns none. Requests' ids are set here. tokens: whether each token is an event.
  /// Throws errc::cancelled after cancel, errc::failed after a failure.
  std::optional<generation_stream> submit(std::vector<generation_request> requests, bool tokens);
  /// Whether submit would refuse so many more.
  bool full(std::int64_t requests) const;
  /// Nothing is taken from then on, and the generator's thread is to end all that is under way.
  void cancel();
  bool cancelled() const;
  bool idle() const;   // nothing is under way
  bool failed() const; // a pass of the model failed; nothing is taken any more
  engine_counts counts() const;
  /// Called when there is something to take in, or the desk is cancelled; by any thread, which holds no lock of the desk's but may
  /// hold a stream's. At once when there already is.
  void on_news(std::function<void()> call);
  // The generator's thread.
  /// Adds what was submitted and gives up what nobody waits for. True: there is something of the desk's under way.
  bool take_in(generator& g);
  /// Whether the generator's request of that id came from here.
  bool took(std::uint64_t id) const;
  void deliver(generation_output&& output);
  void set_version(weights_version version);
  /// All that is under way fails with `why`, and nothing is taken any more. failed: it is the model's failure.
  void close(const std::exception_ptr& why, bool failed);

private:
  struct impl;
  std::shared_ptr<impl> impl_;
};

} // namespace troupe
