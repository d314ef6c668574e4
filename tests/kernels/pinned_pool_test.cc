// The pool of pinned memory over a fake device.
#include "kernels/cuda/pinned_pool.h"

#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_device.h"

namespace flashbias::cuda {
namespace {

using support::FakeDevice;
using ::testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

class PinnedPoolTest : public ::testing::Test {
 protected:
  ~PinnedPoolTest() override {
    pool_.reset();
    EXPECT_EQ(device_->live_objects(), 0);
  }

  void Make(size_t max_bytes) {
    pool_ =
        std::make_unique<PinnedPool>(std::vector<std::shared_ptr<DeviceApi>>{device_}, max_bytes);
  }

  const std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
  std::unique_ptr<PinnedPool> pool_;
};

TEST_F(PinnedPoolTest, BlocksAreAlignedDisjointAndLargeEnough) {
  Make(64 * kMiB);
  std::vector<HostBlock> blocks;
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{4096}, size_t{4097}, size_t{70000},
                             size_t{256} << 10, kMiB + 1, 5 * kMiB - 1, size_t{4097}}) {
    absl::StatusOr<HostBlock> block = pool_->Allocate(bytes);
    ASSERT_TRUE(block.ok()) << block.status();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block->data()) % HostAllocator::kAlignment, 0);
    EXPECT_EQ(block->size(), bytes);
    std::memset(block->data(), static_cast<int>(blocks.size()), bytes);
    EXPECT_TRUE(pool_->Contains(block->data(), bytes));
    blocks.push_back(*std::move(block));
  }
  for (size_t n = 0; n < blocks.size(); ++n) {
    for (size_t byte = 0; byte < blocks[n].size(); byte += 1000) {
      ASSERT_EQ(blocks[n].data()[byte], static_cast<char>(n));
    }
  }
}

TEST_F(PinnedPoolTest, KnowsItsMemoryFromOthers) {
  Make(64 * kMiB);
  const HostBlock block = *pool_->Allocate(3 * kMiB);
  const std::vector<char> other(100);
  EXPECT_FALSE(pool_->Contains(other.data(), other.size()));
  EXPECT_TRUE(pool_->Contains(block.data() + kMiB, 2 * kMiB));
  EXPECT_FALSE(pool_->Contains(block.data() + kMiB, 2 * kMiB + 1)) << "reaches beyond it";
  EXPECT_FALSE(pool_->Contains(block.data() - 1, 1));
}

TEST_F(PinnedPoolTest, OnceWarmNothingIsTakenFromTheSystem) {
  Make(64 * kMiB);
  const auto round = [&] {
    std::vector<HostBlock> held;
    for (const size_t bytes : {100u, 5000u, 5100u, 3000000u, 2900000u}) {
      held.push_back(*pool_->Allocate(bytes));
    }
  };
  round();
  const int calls = device_->pinned_calls();
  for (int n = 0; n < 100; ++n) round();
  EXPECT_EQ(device_->pinned_calls(), calls);
  EXPECT_EQ(pool_->usage().used_bytes, 0);
  EXPECT_EQ(pool_->usage().size_bytes, device_->pinned_bytes());
}

TEST_F(PinnedPoolTest, TheBoundHoldsAndIsNamed) {
  Make(8 * kMiB);
  const HostBlock held = *pool_->Allocate(6 * kMiB);
  const absl::StatusOr<HostBlock> refused = pool_->Allocate(3 * kMiB);
  ASSERT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("no pinned memory for 3145728 bytes: 6291456 of 6291456 bytes are in use, "
                        "the limit is 8388608"));
  EXPECT_LE(device_->pinned_bytes(), 8 * kMiB);
  EXPECT_EQ(pool_->Allocate(size_t{1} << 60).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(PinnedPoolTest, IdleMemoryOfOtherClassesMakesRoom) {
  Make(8 * kMiB);
  {
    const HostBlock first = *pool_->Allocate(3 * kMiB);
    const HostBlock second = *pool_->Allocate(4 * kMiB);
  }
  const absl::StatusOr<HostBlock> larger = pool_->Allocate(7 * kMiB);
  EXPECT_TRUE(larger.ok()) << larger.status();
  EXPECT_LE(device_->pinned_bytes(), 8 * kMiB);
}

TEST_F(PinnedPoolTest, IdleSlabsMakeRoomToo) {
  Make(16 * kMiB);
  for (size_t bytes = 4096; bytes <= 256 << 10; bytes += bytes / 4) {
    EXPECT_TRUE(pool_->Allocate(bytes).ok()) << bytes;
  }
  const absl::StatusOr<HostBlock> held = pool_->Allocate(4096);
  ASSERT_TRUE(held.ok());
  const absl::StatusOr<HostBlock> large = pool_->Allocate(10 * kMiB);
  EXPECT_TRUE(large.ok()) << large.status();
  EXPECT_TRUE(pool_->Contains(held->data(), held->size()));
  EXPECT_LE(device_->pinned_bytes(), 16 * kMiB);
}

TEST_F(PinnedPoolTest, WhatNobodyUsesGoesBack) {
  Make(64 * kMiB);
  const HostBlock held = *pool_->Allocate(8 * kMiB);
  *pool_->Allocate(16 * kMiB);
  *pool_->Allocate(4 * kMiB);
  ASSERT_EQ(pool_->usage().size_bytes, 28 * kMiB);
  pool_->ReleaseIdle(absl::Now() - absl::Hours(1), 0);
  EXPECT_EQ(pool_->usage().size_bytes, 28 * kMiB) << "it was used a moment ago";
  pool_->ReleaseIdle(absl::Now() + absl::Hours(1), 4 * kMiB);
  EXPECT_EQ(pool_->usage().size_bytes, 12 * kMiB) << "the largest, and no more than has to";
  pool_->ReleaseIdle(absl::Now() + absl::Hours(1), 0);
  EXPECT_EQ(pool_->usage().size_bytes, 8 * kMiB) << "what is in use stays";
}

TEST_F(PinnedPoolTest, WhereTheSystemHasNoMoreTheNextDeviceIsAsked) {
  const auto second = std::make_shared<FakeDevice>();
  pool_ = std::make_unique<PinnedPool>(std::vector<std::shared_ptr<DeviceApi>>{device_, second},
                                       8 * kMiB);
  device_->FailNext(FakeDevice::Call::kAllocatePinned, 700, /*sticky=*/true);
  EXPECT_TRUE(pool_->Allocate(kMiB).ok());
  EXPECT_EQ(device_->pinned_bytes(), 0);
  EXPECT_GT(second->pinned_bytes(), 0);
  second->FailNext(FakeDevice::Call::kAllocatePinned, kOutOfMemory, /*sticky=*/false);
  EXPECT_EQ(pool_->Allocate(3 * kMiB).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(pool_->Allocate(3 * kMiB).ok());
  pool_.reset();
  EXPECT_EQ(second->live_objects(), 0);
}

TEST_F(PinnedPoolTest, RegisteredMemoryIsAsGoodAsItsOwnWhileTheHandleLives) {
  Make(kMiB);
  std::vector<char> memory(3 * kMiB);
  std::vector<char> other(kMiB);
  absl::StatusOr<HostRegistration> registration = pool_->Register(memory.data(), memory.size());
  ASSERT_TRUE(registration.ok()) << registration.status();
  absl::StatusOr<HostRegistration> second = pool_->Register(other.data(), other.size());
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(device_->registered_bytes(), 4 * kMiB);
  EXPECT_EQ(pool_->usage().registered_bytes, 4 * kMiB);
  EXPECT_TRUE(pool_->Contains(memory.data() + kMiB, 2 * kMiB));
  EXPECT_FALSE(pool_->Contains(memory.data() + kMiB, 2 * kMiB + 1)) << "reaches beyond it";
  EXPECT_FALSE(pool_->Contains(memory.data() - 1, 2));
  EXPECT_EQ(pool_->usage().size_bytes, 0) << "the bound is for the pool's own";
  {
    const HostRegistration moved = *std::move(registration);
    EXPECT_TRUE(pool_->Contains(memory.data(), 1));
  }
  EXPECT_FALSE(pool_->Contains(memory.data(), 1));
  EXPECT_TRUE(pool_->Contains(other.data(), kMiB));
  EXPECT_EQ(device_->registered_bytes(), kMiB);
  second = HostRegistration();
  EXPECT_EQ(device_->registered_bytes(), 0);
  EXPECT_EQ(pool_->usage().registered_bytes, 0);
}

TEST_F(PinnedPoolTest, WhatCannotBeRegisteredChangesNothing) {
  const auto second = std::make_shared<FakeDevice>();
  pool_ = std::make_unique<PinnedPool>(std::vector<std::shared_ptr<DeviceApi>>{device_, second},
                                       8 * kMiB);
  std::vector<char> memory(kMiB);
  for (FakeDevice* const device : {device_.get(), second.get()}) {
    device->FailNext(FakeDevice::Call::kRegisterHost, kOutOfMemory, /*sticky=*/false);
  }
  const absl::Status refused = pool_->Register(memory.data(), memory.size()).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("cannot register 1048576 bytes of host memory: fakeError2"));
  EXPECT_FALSE(pool_->Contains(memory.data(), 1));
  EXPECT_EQ(pool_->usage().registered_bytes, 0);

  device_->FailNext(FakeDevice::Call::kRegisterHost, 700, /*sticky=*/true);
  {
    const absl::StatusOr<HostRegistration> registration =
        pool_->Register(memory.data(), memory.size());
    EXPECT_TRUE(registration.ok()) << registration.status();
    EXPECT_EQ(second->registered_bytes(), kMiB) << "the next device is asked";
  }
  EXPECT_EQ(second->registered_bytes(), 0) << "and told when it ends";
  pool_.reset();
  EXPECT_EQ(second->live_objects(), 0);
}

TEST_F(PinnedPoolTest, ARegistrationKeepsASharedPoolAlive) {
  std::vector<char> memory(kMiB);
  auto pool = std::make_shared<PinnedPool>(std::vector<std::shared_ptr<DeviceApi>>{device_}, kMiB);
  const std::weak_ptr<PinnedPool> watched = pool;
  absl::StatusOr<HostRegistration> registration = pool->Register(memory.data(), memory.size());
  ASSERT_TRUE(registration.ok());
  pool = nullptr;
  EXPECT_EQ(device_->registered_bytes(), kMiB);
  registration = HostRegistration();
  EXPECT_EQ(device_->registered_bytes(), 0);
  EXPECT_TRUE(watched.expired());
}

TEST_F(PinnedPoolTest, ManyThreads) {
  Make(32 * kMiB);
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t n = 0; n < 300; ++n) {
        absl::StatusOr<HostBlock> block = pool_->Allocate(1000 * (n % 50 + 1));
        ASSERT_TRUE(block.ok()) << block.status();
        std::memset(block->data(), t, block->size());
        ASSERT_EQ(block->data()[block->size() - 1], static_cast<char>(t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool_->usage().used_bytes, 0);
}

}  // namespace
}  // namespace flashbias::cuda
