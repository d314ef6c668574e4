#include "server/region_registry.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/heap_allocator.h"
#include "tests/support/process_usage.h"

namespace flashbias::server {
namespace {

using testing::HasSubstr;

constexpr int64_t kPage = 4096;
constexpr pid_t kPeer = 1001;

RegionLimits Limits() {
  return {.max_bytes = 16 * kPage, .max_peer_bytes = 8 * kPage, .max_regions = 5};
}

TEST(RegionRegistryTest, ARegionIsSealedMemoryThatBothEndsSee) {
  RegionRegistry registry(Limits());
  const auto made = registry.Make(kPeer, 5000);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_NE(made->id, 0u);
  struct stat file = {};
  ASSERT_EQ(fstat(made->fd.get(), &file), 0);
  EXPECT_EQ(file.st_size, 5000);
  EXPECT_EQ(file.st_blocks * 512, 2 * kPage) << "all pages exist";
  EXPECT_EQ(fcntl(made->fd.get(), F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  EXPECT_NE(ftruncate(made->fd.get(), 100), 0);
  EXPECT_NE(ftruncate(made->fd.get(), 10000), 0);
  EXPECT_NE(fcntl(made->fd.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_NE(fcntl(made->fd.get(), F_GETFD) & FD_CLOEXEC, 0);

  const std::shared_ptr<const Region> region = registry.Find(made->id);
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(region->size(), 5000u);
  ASSERT_EQ(pwrite(made->fd.get(), "hello", 5, 4990), 5);
  EXPECT_EQ(std::string(region->data() + 4990, 5), "hello");
  // A hole is refilled with zeroes.
  ASSERT_EQ(fallocate(made->fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * kPage), 0);
  EXPECT_EQ(region->data()[4990], 0);
}

// Takes part of what is registered down, and touches it when that ends.
class RecordingAllocator final : public HeapAllocator {
 public:
  absl::StatusOr<HostRegistration> Register(void* data, size_t bytes) override {
    if (fails) return absl::ResourceExhaustedError("no more pages can be locked");
    registered.emplace_back(static_cast<const char*>(data), bytes);
    return MakeRegistration(data);
  }

  std::vector<std::pair<const char*, size_t>> registered;
  std::string last_bytes;  // of what was unregistered: it was mapped still
  bool fails = false;

 private:
  void Unregister(void* data) override {
    for (const auto& [begin, size] : registered) {
      if (begin == data) last_bytes.push_back(begin[size - 1]);
    }
    std::erase_if(registered, [data](const auto& range) { return range.first == data; });
  }
};

// Has memory of a device as the test says.
class RegistryBackend final : public AttentionBackend {
 public:
  const BackendInfo& info() const override { return info_; }
  HostAllocator& host_allocator() override { return allocator; }
  void Run(absl::Span<const AttentionProblem> /*problems*/, absl::Span<ProblemStats> /*stats*/,
           Done done) override {
    std::move(done)(absl::OkStatus());
  }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> OpenDeviceMemory(
      absl::Span<const uint8_t> ipc_handle, uint64_t offset, uint64_t bytes,
      absl::Span<const uint8_t> /*device_uuid*/) override {
    asked.push_back({ipc_handle[0], offset, bytes});
    if (!status.ok()) return status;
    return std::make_unique<Memory>(bytes, &open);
  }

  struct Asked {
    uint8_t handle;
    uint64_t offset, bytes;
    friend bool operator==(const Asked&, const Asked&) = default;
  };
  RecordingAllocator allocator;
  std::vector<Asked> asked;
  absl::Status status;  // what OpenDeviceMemory says
  int open = 0;

 private:
  struct Memory final : DeviceMemory {
    Memory(size_t bytes, int* count) : DeviceMemory(nullptr, bytes), open(count) { ++*open; }
    ~Memory() override { --*open; }
    int* const open;
  };
  const BackendInfo info_ = {.name = "registry"};
};

wire::OfferedMemory Offer(uint8_t handle, uint64_t offset) {
  wire::OfferedMemory offer = {.offset = offset};
  offer.handle.fill(handle);
  return offer;
}

// A pipe's write end, and whether it is closed everywhere.
struct Watch {
  Watch() {
    int fds[2] = {-1, -1};
    EXPECT_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    read = wire::UniqueFd(fds[0]);
    write = wire::UniqueFd(fds[1]);
  }
  bool closed() const {
    char byte = 0;
    return ::read(read.get(), &byte, 1) == 0;
  }
  wire::UniqueFd read, write;
};

TEST(RegionRegistryTest, OfferedMemoryIsOpenUntilItsLastHolderLetsGo) {
  RegistryBackend backend;
  auto registry =
      std::make_unique<RegionRegistry>(Limits(), std::vector<AttentionBackend*>{&backend});
  Watch watch;
  const auto id = registry->Open(Offer(7, 8), 1 << 20, std::move(watch.write));
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_THAT(backend.asked, testing::ElementsAre(RegistryBackend::Asked{7, 8, 1 << 20}));
  std::shared_ptr<const Region> held = registry->Find(*id);
  ASSERT_NE(held, nullptr);
  EXPECT_EQ(held->size(), 1u << 20);
  EXPECT_EQ(held->device(), 0);
  EXPECT_EQ(registry->usage().device_regions, 1);
  EXPECT_EQ(registry->usage().device_bytes, 1 << 20);
  EXPECT_EQ(registry->usage().regions, 0);
  EXPECT_EQ(registry->usage().bytes, 0) << "it is no memory of the host's";
  registry->Withdraw(*id);
  EXPECT_EQ(registry->Find(*id), nullptr);
  EXPECT_EQ(backend.open, 1);
  EXPECT_FALSE(watch.closed());
  held = nullptr;
  EXPECT_EQ(backend.open, 0);
  EXPECT_TRUE(watch.closed());
  EXPECT_EQ(registry->usage().device_regions, 0);
  EXPECT_EQ(registry->usage().device_bytes, 0);
}

TEST(RegionRegistryTest, TheDeviceWhoseMemoryItIsOpensIt) {
  RegistryBackend first, second;
  RegionRegistry registry(Limits(), {&first, &second});
  first.status = absl::NotFoundError("not here");
  auto id = registry.Open(Offer(1, 0), 100, {});
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(registry.Find(*id)->device(), 1);
  registry.Withdraw(*id);

  second.status = absl::NotFoundError("nor here");
  id = registry.Open(Offer(1, 0), 100, {});
  EXPECT_EQ(id.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(id.status().message()), HasSubstr("the server's devices (2)"));
  // What one says who knows the memory counts more.
  first.status = absl::OutOfRangeError("within its 50 bytes");
  id = registry.Open(Offer(1, 0), 100, {});
  EXPECT_EQ(id.status(), absl::InvalidArgumentError("within its 50 bytes"));
  first.status = absl::InvalidArgumentError("cannot open it");
  EXPECT_EQ(registry.Open(Offer(1, 0), 100, {}).status(), first.status);
  EXPECT_EQ(registry.usage().device_regions, 0);
}

TEST(RegionRegistryTest, OffersAreHeldAgainstTheLimits) {
  RegistryBackend backend;
  RegionRegistry registry(Limits(), {&backend});
  EXPECT_EQ(registry.Open(Offer(1, 0), 0, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(registry.Open(Offer(1, 0), ~uint64_t{0}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(registry.Open(Offer(1, 2), 100, {}).status().message()),
              HasSubstr("accepted: multiples of 4"));
  EXPECT_TRUE(backend.asked.empty());
  // Far beyond the limits of bytes, which are for the host's.
  for (int n = 0; n < 3; ++n) ASSERT_TRUE(registry.Open(Offer(1, 0), 1 << 30, {}).ok());
  for (int n = 0; n < 2; ++n) ASSERT_TRUE(registry.Make(kPeer, 1).ok());
  for (const absl::Status& status :
       {registry.Open(Offer(1, 0), 100, {}).status(), registry.Make(kPeer, 1).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("there are 5 regions"));
  }
  EXPECT_EQ(backend.open, 3);
}

TEST(RegionRegistryTest, WithoutDevicesOffersAreRefused) {
  RegionRegistry registry(Limits());
  EXPECT_EQ(registry.Open(Offer(1, 0), 100, {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(registry.usage().device_regions, 0);
}

TEST(RegionRegistryTest, ARegionIsRegisteredUntilItsLastHolderLetsGo) {
  RegistryBackend backend;
  RecordingAllocator& allocator = backend.allocator;
  auto registry =
      std::make_unique<RegionRegistry>(Limits(), std::vector<AttentionBackend*>{&backend});
  const auto made = registry->Make(kPeer, 5000);
  ASSERT_TRUE(made.ok()) << made.status();
  std::shared_ptr<const Region> held = registry->Find(made->id);
  ASSERT_NE(held, nullptr);
  EXPECT_THAT(allocator.registered, testing::ElementsAre(testing::Pair(held->data(), 5000u)));
  held->data()[4999] = 'x';
  registry->Withdraw(made->id);
  registry = nullptr;
  EXPECT_EQ(allocator.registered.size(), 1u) << "a request uses it still";
  held = nullptr;
  EXPECT_TRUE(allocator.registered.empty());
  EXPECT_EQ(allocator.last_bytes, "x");
}

TEST(RegionRegistryTest, ARegionThatCannotBeRegisteredWorksAndIsCounted) {
  RegistryBackend backend;
  RecordingAllocator& allocator = backend.allocator;
  RegionRegistry registry(Limits(), {&backend});
  const auto good = registry.Make(kPeer, 100);
  allocator.fails = true;
  const auto bad = registry.Make(kPeer, 100);
  const auto also_bad = registry.Make(kPeer, 100);
  ASSERT_TRUE(good.ok() && bad.ok() && also_bad.ok());
  EXPECT_EQ(registry.usage().regions, 3);
  EXPECT_EQ(registry.usage().unregistered, 2);
  registry.Find(bad->id)->data()[99] = 'x';
  registry.Withdraw(good->id);
  EXPECT_EQ(registry.usage().unregistered, 2);
  registry.Withdraw(bad->id);
  registry.Withdraw(also_bad->id);
  EXPECT_EQ(registry.usage().unregistered, 0);
}

TEST(RegionRegistryTest, IdsDoNotRepeatAndCannotBeGuessedFromEachOther) {
  RegionRegistry registry({.max_bytes = 1 << 20, .max_peer_bytes = 1 << 20, .max_regions = 100});
  std::set<uint64_t> ids, high_halves;
  for (int n = 0; n < 100; ++n) {
    const auto made = registry.Make(kPeer, 1);
    ASSERT_TRUE(made.ok());
    ids.insert(made->id);
    high_halves.insert(made->id >> 32);
  }
  EXPECT_EQ(ids.size(), 100u);
  EXPECT_GT(high_halves.size(), 95u);
}

TEST(RegionRegistryTest, SizesBeyondTheLimitsAreRefusedWithTheLimit) {
  RegionRegistry registry(Limits());
  EXPECT_EQ(registry.Make(kPeer, 0).status().code(), absl::StatusCode::kInvalidArgument);
  for (const uint64_t bytes : {uint64_t{16 * kPage + 1}, uint64_t{1} << 63, ~uint64_t{0}}) {
    const absl::Status status = registry.Make(kPeer, bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("limit is 65536"));
  }
  const absl::Status peer = registry.Make(kPeer, 8 * kPage + 1).status();
  EXPECT_EQ(peer.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(peer.message()), HasSubstr("limit is 32768 a process"));
  EXPECT_EQ(registry.usage().regions, 0);
  EXPECT_EQ(registry.usage().bytes, 0);
}

TEST(RegionRegistryTest, LimitsHoldForAllRegionsTogether) {
  RegionRegistry registry(Limits());
  ASSERT_TRUE(registry.Make(kPeer, 8 * kPage).ok());
  EXPECT_FALSE(registry.Make(kPeer, 1).ok()) << "the process has all it may";
  ASSERT_TRUE(registry.Make(kPeer + 1, 7 * kPage).ok());
  EXPECT_FALSE(registry.Make(kPeer + 2, 2 * kPage).ok()) << "the server has";
  ASSERT_TRUE(registry.Make(kPeer + 2, 1).ok());
  EXPECT_EQ(registry.usage().bytes, 16 * kPage);
}

TEST(RegionRegistryTest, TheirNumberIsLimited) {
  RegionRegistry registry(Limits());
  for (int n = 0; n < 5; ++n) ASSERT_TRUE(registry.Make(kPeer, 1).ok());
  const absl::Status status = registry.Make(kPeer, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("limit is 5"));
}

TEST(RegionRegistryTest, AWithdrawnRegionStaysForThoseWhoHoldItAndCounts) {
  auto registry = std::make_unique<RegionRegistry>(Limits());
  const auto made = registry->Make(kPeer, 8 * kPage);
  ASSERT_TRUE(made.ok());
  std::shared_ptr<const Region> held = registry->Find(made->id);
  registry->Withdraw(made->id);
  registry->Withdraw(made->id);
  EXPECT_EQ(registry->Find(made->id), nullptr);
  EXPECT_EQ(held->data()[8 * kPage - 1], 0);
  EXPECT_EQ(registry->usage().bytes, 8 * kPage);
  EXPECT_FALSE(registry->Make(kPeer, 1).ok()) << "in use, it counts still";
  held = nullptr;
  EXPECT_EQ(registry->usage().regions, 0);
  EXPECT_EQ(registry->usage().bytes, 0);
  const auto again = registry->Make(kPeer, 8 * kPage);
  ASSERT_TRUE(again.ok());
  held = registry->Find(again->id);
  registry = nullptr;
  EXPECT_EQ(held->data()[0], 0) << "a region may outlive its registry";
}

TEST(RegionRegistryTest, NoDescriptorAndNoMappingIsLeft) {
  const int descriptors = support::OpenDescriptors();
  const int mappings = support::MappedRegions();
  {
    RegionRegistry registry(Limits());
    for (int n = 0; n < 100; ++n) {
      const auto made = registry.Make(kPeer, 3 * kPage);
      ASSERT_TRUE(made.ok()) << made.status();
      EXPECT_EQ(support::MappedRegions(), mappings + 1);
      registry.Withdraw(made->id);
    }
    ASSERT_TRUE(registry.Make(kPeer, 3 * kPage).ok());
  }
  EXPECT_EQ(support::OpenDescriptors(), descriptors);
  EXPECT_EQ(support::MappedRegions(), mappings);
}

TEST(RegionRegistryTest, ManyThreadsMakeFindAndWithdraw) {
  RegionRegistry registry(
      {.max_bytes = 64 * kPage, .max_peer_bytes = 64 * kPage, .max_regions = 8});
  std::vector<std::thread> threads;
  for (pid_t peer = 0; peer < 4; ++peer) {
    threads.emplace_back([&registry, peer] {
      for (int n = 0; n < 200; ++n) {
        const auto made = registry.Make(peer, kPage);
        if (!made.ok()) continue;
        const std::shared_ptr<const Region> held = registry.Find(made->id);
        ASSERT_NE(held, nullptr);
        held->data()[0] = 'x';
        registry.Withdraw(made->id);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(registry.usage().regions, 0);
  EXPECT_EQ(registry.usage().bytes, 0);
}

}  // namespace
}  // namespace flashbias::server
