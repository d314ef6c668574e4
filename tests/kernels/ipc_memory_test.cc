// Memory of other processes that is open on a device, over a fake one.
#include "kernels/cuda/ipc_memory.h"

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_device.h"

namespace flashbias::cuda {
namespace {

using support::FakeDevice;
using support::ForeignMemory;
using ::testing::HasSubstr;

class IpcMemoryTest : public ::testing::Test {
 protected:
  IpcMemoryTest() { device_->Import(memory_); }
  ~IpcMemoryTest() override {
    table_ = nullptr;
    EXPECT_EQ(device_->open_ipc(), 0) << "something was not closed";
  }

  auto Open(const ForeignMemory& memory, uint64_t offset, uint64_t bytes) {
    return table_->Open(memory.handle(), offset, bytes);
  }

  const std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
  const ForeignMemory memory_{8192, 'a'};
  std::shared_ptr<IpcMemoryTable> table_ = std::make_shared<IpcMemoryTable>(device_, "3");
};

TEST_F(IpcMemoryTest, AnAllocationIsOpenedOnceAndClosedByItsLastUser) {
  auto first = Open(memory_, 0, 8192);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ((*first)->size(), 8192);
  auto second = Open(memory_, 4096, 100);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ((*second)->data(), (*first)->data() + 4096);
  EXPECT_EQ((*second)->size(), 100);
  EXPECT_EQ(device_->opened_ipc(), 1);
  *first = nullptr;
  EXPECT_EQ(device_->open_ipc(), 1) << "the second uses it still";
  *second = nullptr;
  EXPECT_EQ(device_->open_ipc(), 0);
  EXPECT_TRUE(Open(memory_, 0, 1).ok()) << "it can be opened again";
  EXPECT_EQ(device_->opened_ipc(), 2);
}

TEST_F(IpcMemoryTest, AllocationsAreKeptApart) {
  const ForeignMemory other(4096, 'b');
  device_->Import(other);
  const auto first = Open(memory_, 0, 8192);
  const auto second = Open(other, 0, 4096);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE((*first)->data(), (*second)->data());
  EXPECT_EQ(device_->open_ipc(), 2);
}

TEST_F(IpcMemoryTest, RangesBeyondTheAllocationAreRefusedAndNothingStaysOpen) {
  struct Case {
    uint64_t offset, bytes;
  };
  for (const Case c : {Case{0, 8193}, Case{8192, 1}, Case{8193, 0}, Case{~uint64_t{0}, 2},
                       Case{2, ~uint64_t{0}}, Case{4096, 4097}}) {
    const absl::Status status = Open(memory_, c.offset, c.bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(std::string(status.message()), HasSubstr("within its 8192 bytes"));
    EXPECT_EQ(device_->open_ipc(), 0);
  }
  const auto good = Open(memory_, 8191, 1);
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_FALSE(Open(memory_, 0, 8193).ok());
  EXPECT_EQ(device_->open_ipc(), 1) << "what others use stays open";
}

TEST_F(IpcMemoryTest, HandlesThatNameNothingAreRefused) {
  const ForeignMemory unknown(4096, 'x');
  const absl::Status status = Open(unknown, 0, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("ipc_handle: CUDA device 3 cannot open it (fakeError1"));
  const absl::Status cut = table_->Open(memory_.handle().subspan(1), 0, 1).status();
  EXPECT_EQ(cut.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(cut.message()), HasSubstr("has 63 bytes; accepted: 64"));
}

TEST_F(IpcMemoryTest, MemoryOfAnotherDeviceIsNotKeptOpen) {
  const ForeignMemory elsewhere(4096, 'b');
  device_->Import(elsewhere, /*on_this_device=*/false);
  EXPECT_EQ(Open(elsewhere, 0, 1).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(device_->opened_ipc(), 1);
  EXPECT_EQ(device_->open_ipc(), 0);
}

TEST_F(IpcMemoryTest, MemoryMayOutliveItsTable) {
  auto memory = Open(memory_, 0, 8192);
  ASSERT_TRUE(memory.ok());
  table_ = nullptr;
  EXPECT_EQ(device_->open_ipc(), 1);
  *memory = nullptr;
  EXPECT_EQ(device_->open_ipc(), 0);
}

TEST_F(IpcMemoryTest, ManyThreads) {
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int n = 0; n < 300; ++n) {
        const auto memory = Open(memory_, 0, 8192);
        ASSERT_TRUE(memory.ok()) << memory.status();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace flashbias::cuda
