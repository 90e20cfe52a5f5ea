#pragma once
#include "rollout/generator.hpp"
#include <array>
#include <chrono>
#include <cstdint>
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

/// What an engine did since it was made, and what is under way.
struct engine_counts {
  generator_counts generator;
  std::int64_t waiting = 0, running = 0;                 // requests without and with a first token
  std::uint64_t prompt_tokens = 0, output_tokens = 0;    // a request's prompt once, whatever n
  std::uint64_t stopped = 0, at_length = 0, aborted = 0; // samples, by how they ended
  std::uint64_t refused = 0;                             // requests, for a full queue
  std::uint64_t given_up = 0;                            // submissions whose stream went away before their end
  latency_histogram first_token, whole;                  // of requests, since they came
};

/// A token, or a sample that ended; `id` counts the requests of one submission, from 0.
using generation_event = std::variant<streamed_token, generation_output>;

/// What comes of requests at an engine, which may be gone before it. One thread. Going away gives up what has not ended.
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

/// Several threads' requests on one generator: a thread of its own adds, steps and hands tokens over as they are drawn.
/// What a request gets does not depend on the others.
class engine {
public:
  /// max_waiting: requests without a first token, above which submit refuses.
  engine(std::unique_ptr<generator> g, std::int64_t max_waiting);
  ~engine(); // ends as cancel does
  /// Takes all or, when the queue is full, none and returns none. Requests' ids are set here. tokens: whether each token is an event.
  /// Any thread. Throws errc::cancelled after cancel, errc::failed after a failure.
  std::optional<generation_stream> submit(std::vector<generation_request> requests, bool tokens);
  /// Whether submit would refuse so many more.
  bool full(std::int64_t requests) const;
  /// Ends all that is under way; nothing is taken from then on. Any thread.
  void cancel();
  bool idle() const;   // nothing is under way
  bool failed() const; // a pass of the model failed; nothing is taken any more
  engine_counts counts() const;

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

} // namespace troupe
