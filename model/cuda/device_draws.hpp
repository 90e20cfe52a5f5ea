#pragma once
#include "model/causal_lm.hpp"
#include "model/kernels/cuda/draw.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <span>

namespace troupe::cuda {

/// Draws of passes: to the device and, drawn, back. The arrays lie in the same place as long as they suffice. One stream.
class device_draws {
public:
  /// Queues the upload. places: of draws, at least as many as there are; the others are greedy. Valid until the next call, which must
  /// not come before the work that reads it has ended.
  draw_arrays put(std::span<const token_draw> draws, std::int64_t places, stream where);
  /// The device memory moved since the last call, so that captured pointers are stale.
  bool moved() const { return moved_; }
  /// Queues the way back of what `put`'s draws gave.
  void fetch(std::size_t n_draws, stream where);
  /// After the stream is done: the tokens, [draws.size()], and every draw's alternatives.
  void read(std::span<const token_draw> draws, troupe::drawn_token* drawn) const;

private:
  // Memory of one array on both sides.
  struct mirror {
    pinned_buffer host;
    device_buffer device;
    template <class T>
    T* on_host() const {
      return static_cast<T*>(host.data());
    }
    template <class T>
    T* on_device() const {
      return static_cast<T*>(device.data());
    }
  };
  void reserve(mirror& m, std::size_t bytes);
  void upload_edits(std::span<const token_draw> draws, stream where);

  mirror draws_, edits_, entries_, drawn_, top_;
  std::size_t n_top_ = 0;
  bool moved_ = false;
};

} // namespace troupe::cuda
