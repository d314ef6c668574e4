// Device memory for runs, over a fake device.
#include "kernels/cuda/device_arena.h"

#include <atomic>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_device.h"

namespace flashbias::cuda {
namespace {

using support::FakeDevice;
using ::testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

TEST(DeviceArena, RangesAreAlignedAndDisjointAndReused) {
  FakeDevice device;
  {
    DeviceArena arena(&device, 64 * kMiB);
    DeviceRange a = *arena.Reserve(1000);
    DeviceRange b = *arena.Reserve(kMiB);
    DeviceRange c = *arena.Reserve(0);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 256, 0);
    EXPECT_GE(b.data(), a.data() + 1000);
    EXPECT_GE(c.data(), b.data() + kMiB);
    EXPECT_EQ(arena.usage().used_bytes, 1024 + kMiB + 256);
    char* const place = b.data();
    b = DeviceRange();
    const DeviceRange d = *arena.Reserve(kMiB / 2);
    EXPECT_EQ(d.data(), place) << "first fit";
    EXPECT_EQ(device.device_calls(), 1) << "one region holds them all";
  }
  EXPECT_EQ(device.live_objects(), 0);
}

TEST(DeviceArena, BeyondTheBoundIsRefusedAndNamed) {
  FakeDevice device;
  DeviceArena arena(&device, 8 * kMiB);
  const absl::StatusOr<DeviceRange> refused = arena.Reserve(8 * kMiB + 1);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("it takes 8388609 bytes of device memory; the limit is 8388608"));
  EXPECT_TRUE(arena.Reserve(8 * kMiB).ok());
  EXPECT_LE(device.device_bytes(), 8 * kMiB);
}

TEST(DeviceArena, WaitsForWhatOthersHoldInTurn) {
  FakeDevice device;
  DeviceArena arena(&device, 8 * kMiB);
  DeviceRange held = *arena.Reserve(6 * kMiB);
  std::atomic<bool> large_has = false;
  std::thread large([&] {
    const absl::StatusOr<DeviceRange> range = arena.Reserve(7 * kMiB);
    EXPECT_TRUE(range.ok()) << range.status();
    large_has = true;
  });
  absl::SleepFor(absl::Milliseconds(20));
  std::atomic<bool> small_has = false;
  // Would fit now, but the large one came first.
  std::thread small([&] {
    EXPECT_TRUE(arena.Reserve(kMiB).ok());
    small_has = true;
  });
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(large_has);
  EXPECT_FALSE(small_has);
  held = DeviceRange();
  large.join();
  small.join();
  EXPECT_EQ(arena.usage().used_bytes, 0);
}

TEST(DeviceArena, TakesWhatTheDeviceHasAndMakesRoomForLargerRanges) {
  FakeDevice device(10 * kMiB);  // less than the bound
  DeviceArena arena(&device, 100 * kMiB);
  EXPECT_TRUE(arena.Reserve(3 * kMiB).ok());
  EXPECT_TRUE(arena.Reserve(9 * kMiB).ok()) << "the idle region goes first";
  const absl::StatusOr<DeviceRange> refused = arena.Reserve(11 * kMiB);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("no such room free"));
}

}  // namespace
}  // namespace flashbias::cuda
