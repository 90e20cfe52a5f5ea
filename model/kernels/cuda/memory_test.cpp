#include "core/error.hpp"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include <algorithm>

namespace troupe::cuda {
namespace {

class streams : public gpu_test {};

TEST_F(streams, copy_between_host_and_device_in_order) {
  stream_owner work;
  pinned_buffer host(1024);
  auto* bytes = static_cast<unsigned char*>(host.data());
  std::fill_n(bytes, 1024, std::uint8_t(7));
  device_buffer device(1024);
  event begin, end;
  begin.record(work.get());
  copy_async(device.data(), bytes, 1024, work.get());
  fill_zero(as<unsigned char>(device) + 512, 512, work.get());
  copy_async(bytes, device.data(), 1024, work.get());
  end.record(work.get());
  end.synchronize();
  EXPECT_EQ(std::count(bytes, bytes + 512, 7), 512);
  EXPECT_EQ(std::count(bytes + 512, bytes + 1024, 0), 512);
  EXPECT_GE(end.elapsed_ms(begin), 0);
}

TEST_F(streams, a_graph_runs_what_was_recorded_each_time) {
  stream_owner work;
  auto y = to_device(std::vector<float>(100, 1.f)), x = to_device(std::vector<float>(100, 2.f));
  begin_capture(work.get());
  add(dtype::f32, y.data(), x.data(), 100, work.get());
  const graph recorded = end_capture(work.get());
  EXPECT_TRUE(recorded);
  for (int i = 0; i < 3; ++i)
    recorded.launch(work.get());
  synchronize(work.get());
  EXPECT_EQ(to_host<float>(y), std::vector<float>(100, 7.f)); // not the 9 of an addition at the recording as well
}

TEST_F(streams, memory_is_counted) {
  const memory_info before = device_memory();
  const device_buffer taken(std::size_t(64) << 20);
  EXPECT_LT(device_memory().free, before.free);
  EXPECT_GE(before.total, before.free);
}

TEST_F(streams, too_much_memory_is_an_error) { EXPECT_THROW(device_buffer(std::size_t(1) << 50), error); }

} // namespace
} // namespace troupe::cuda
