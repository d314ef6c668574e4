// Regions on a real GPU: a server in a process of its own computes in shared memory that is
// registered with the device, and in device memory of this process, opened by its IPC handle.
//
//   cuda_regions_test [GTEST FLAGS...]          skipped (exit code 77) where there is no device
//   cuda_regions_test --call_until_killed=TARGET    what this program starts to be killed
#include <cuda_runtime_api.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/child_process.h"
#include "tests/integration/http_get.h"
#include "tests/integration/placed_request.h"
#include "tests/integration/remote_problem.h"
#include "tests/integration/server_process.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/owned_problem.h"

namespace flashbias::integration {
namespace {

using client::AttendResult;
using client::AttentionClient;
using client::DeviceRegion;
using client::SharedRegion;
using support::AttentionCase;
using support::Describe;
using support::Materialise;
using support::OwnedProblem;
using ::testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;
constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int kSkipped = 77;
constexpr std::string_view kCallFlag = "--call_until_killed=";

#define ASSERT_CUDA(call)                                                 \
  do {                                                                    \
    const cudaError_t cuda_error = (call);                                \
    ASSERT_EQ(cuda_error, cudaSuccess) << cudaGetErrorString(cuda_error); \
  } while (false)

// As memcpy, from and to host and device, done when it returns.
void Copy(void* to, const void* from, size_t bytes) {
  cudaError_t error = cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
  if (error == cudaSuccess) error = cudaStreamSynchronize(cudaStreamLegacy);
  EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
}

// An allocation on the current device, and its handle.
class Allocation {
 public:
  explicit Allocation(size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, bytes), cudaSuccess);
    EXPECT_EQ(cudaIpcGetMemHandle(&handle_, data_), cudaSuccess);
    int device = 0;
    cudaDeviceProp properties;
    EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
    EXPECT_EQ(cudaGetDeviceProperties(&properties, device), cudaSuccess);
    uuid_ = properties.uuid;
    // NaN in every dtype: what is not written shows.
    EXPECT_EQ(cudaMemset(data_, 0xff, bytes), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;
  ~Allocation() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }

  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return bytes_; }
  client::DeviceMemoryView View(uint64_t offset = 0) const {
    return {.data = data() + offset,
            .bytes = bytes_ - offset,
            .ipc_handle =
                absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(&handle_), sizeof(handle_)),
            .offset = offset,
            .device_uuid =
                absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(&uuid_), sizeof(uuid_))};
  }

 private:
  const size_t bytes_;
  void* data_ = nullptr;
  cudaIpcMemHandle_t handle_{};
  cudaUUID_t uuid_{};
};

absl::StatusOr<std::unique_ptr<ServerProcess>> StartServer() {
  return ServerProcess::Start({"--backend=cuda", "--shared_memory=on"});
}

std::unique_ptr<AttentionClient> NewClient(const ServerProcess& server) {
  auto client =
      AttentionClient::Create({.target = server.unix_target(), .retry = {.max_attempts = 1}});
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

// Whether the gauge comes to this value within ten seconds.
bool AwaitGauge(const ServerProcess& server, const std::string& name, double value) {
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  double last = -1;
  while (absl::Now() < give_up) {
    absl::StatusOr<Samples> samples = server.Metrics();
    if (samples.ok()) last = (*samples)["flashbias_" + name];
    if (last == value) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  std::cout << name << " is " << last << "\n";
  return false;
}

class CudaRegionsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto server = StartServer();
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  static void TearDownTestSuite() { server_ = nullptr; }

  void SetUp() override {
    ASSERT_NE(server_, nullptr);
    client_ = NewClient(*server_);
  }
  // Every test leaves the server as it was.
  void TearDown() override {
    client_ = nullptr;
    EXPECT_TRUE(server_->AwaitNothingHeld(absl::Seconds(10)).ok())
        << server_->AwaitNothingHeld(absl::ZeroDuration()) << "\n"
        << server_->Output();
    absl::StatusOr<Samples> samples = server_->Metrics();
    ASSERT_TRUE(samples.ok()) << samples.status();
    EXPECT_EQ((*samples)["flashbias_shm_unregistered_regions"], 0);
    EXPECT_EQ((*samples)["flashbias_device_healthy{device=\"0\"}"], 1);
    for (const auto& [name, value] : *samples) {
      EXPECT_FALSE(name.starts_with("flashbias_cuda_errors_total")) << name << " " << value;
    }
  }

  std::unique_ptr<DeviceRegion> Register(const client::DeviceMemoryView& view) const {
    auto region = client_->RegisterDeviceMemory(view);
    EXPECT_TRUE(region.ok()) << region.status();
    return *std::move(region);
  }
  std::unique_ptr<SharedRegion> NewShared(size_t bytes) const {
    auto region = client_->CreateRegion(bytes);
    EXPECT_TRUE(region.ok()) << region.status();
    return *std::move(region);
  }

  // A GPU serves 16 bits.
  static AttentionCase Served(AttentionCase c) {
    if (c.dtype == DType::kFloat32) c.dtype = DType::kFloat16;
    return c;
  }
  static AttentionCase Small(uint64_t seed = 1) {
    AttentionCase c;
    c.dtype = DType::kFloat16;
    c.num_q_heads = c.num_kv_heads = 4;
    c.sequences = {{.q_len = 100, .kv_len = 100}};
    c.seed = seed;
    return c;
  }

  // Calls with everything in the region that begins at `base`: the answer is that of the reference,
  // bit by bit that of an inline call, and nothing else in the region has changed.
  void ExpectAnswer(const AttentionCase& c, char* base, size_t gap, bool k_stays = false) const {
    OwnedProblem owned = Materialise(c);
    std::string inline_bytes;
    {
      const absl::StatusOr<AttendResult> result = AttendRemotely(*client_, &owned);
      ASSERT_TRUE(result.ok()) << result.status() << " " << Describe(c);
      inline_bytes = owned.OutputBytes();
    }
    owned.PoisonOutputs();
    const PlacedRequest placed(owned, base, gap, &Copy, k_stays);
    std::string before(placed.end(), '\0');
    Copy(before.data(), base, before.size());
    const absl::StatusOr<AttendResult> result =
        client_->Attend(placed.request(), {.result = placed.result()});
    ASSERT_TRUE(result.ok()) << result.status() << " " << Describe(c);
    std::string after(placed.end(), '\0');
    Copy(after.data(), base, after.size());

    const client::ResultBuffers& results = placed.result();
    AttentionProblem& problem = owned.mutable_problem();
    const auto take = [&](const void* data, size_t bytes, void* to) {
      if (bytes == 0) return;
      const auto at = static_cast<size_t>(static_cast<const char*>(data) - base);
      std::memcpy(to, after.data() + at, bytes);
      std::memset(after.data() + at, 0, bytes);
      std::memset(before.data() + at, 0, bytes);
    };
    take(results.o.data(), results.o.size(), problem.o);
    take(results.lse.data(), results.lse.size() * sizeof(float), problem.lse);
    EXPECT_TRUE(before == after) << "bytes beside the results have changed: " << Describe(c);
    EXPECT_TRUE(owned.OutputBytes() == inline_bytes) << "not the inline bits: " << Describe(c);
    EXPECT_TRUE(support::MatchesReference(owned, 0, support::kDefaultBudget / 4,
                                          support::AllowanceOf({.name = "cuda"}, c.dtype)))
        << Describe(c);
  }

  static std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<AttentionClient> client_;
};

std::unique_ptr<ServerProcess> CudaRegionsTest::server_;

TEST_F(CudaRegionsTest, SharedMemoryIsRegisteredAndGivesTheReferencesAnswers) {
  const std::unique_ptr<SharedRegion> region = NewShared(64 * kMiB);
  EXPECT_TRUE(AwaitGauge(*server_, "registered_bytes", 64.0 * kMiB));
  EXPECT_TRUE(AwaitGauge(*server_, "shm_unregistered_regions", 0));
  for (const size_t gap : {size_t{256}, size_t{7}}) {
    for (uint64_t seed = 0; seed < 16; ++seed) {
      ExpectAnswer(Served(support::BigRandomCase(seed)), region->data(), gap, seed % 3 == 0);
    }
  }
}

TEST_F(CudaRegionsTest, DeviceMemoryGivesTheReferencesAnswersAtAnyAddress) {
  const Allocation memory(256 * kMiB);
  const std::unique_ptr<DeviceRegion> region = Register(memory.View());
  EXPECT_TRUE(AwaitGauge(*server_, "device_regions", 1));
  EXPECT_TRUE(AwaitGauge(*server_, "device_region_bytes", 256.0 * kMiB));
  for (const size_t gap : {size_t{256}, size_t{16}, size_t{2}, size_t{7}}) {
    for (uint64_t seed = 0; seed < 24; ++seed) {
      ExpectAnswer(Served(support::BigRandomCase(seed)), memory.data(), gap, seed % 5 == 0);
    }
  }
}

// One feature at a time, at every alignment of an element and some that are none.
TEST_F(CudaRegionsTest, SequencesFactorsAndLogSumExps) {
  const Allocation memory(64 * kMiB);
  const std::unique_ptr<DeviceRegion> region = Register(memory.View());
  std::vector<AttentionCase> cases(6, Small());
  cases[1].sequences = {{.q_len = 3, .kv_len = 200},
                        {.q_len = 0, .kv_len = 10},
                        {.q_len = 130, .kv_len = 130},
                        {.q_len = 7, .kv_len = 0}};
  cases[2].bias = BiasKind::kLowRank;
  cases[2].rank = 5;
  cases[3].bias = BiasKind::kLowRank;
  cases[3].factor_dtype = DType::kFloat16;
  cases[3].phi_k_per_head = false;
  cases[3].sequences = {{.q_len = 40, .kv_len = 70}, {.q_len = 60, .kv_len = 60}};
  cases[4].want_lse = false;
  cases[4].head_dim = 128;
  cases[5].head_dim = 33;
  cases[5].num_kv_heads = 2;
  cases[5].dtype = DType::kBFloat16;
  for (const AttentionCase& c : cases) {
    for (const size_t gap : {1, 2, 4, 6, 8, 16, 30, 256}) {
      ExpectAnswer(c, memory.data(), gap);
    }
  }
}

TEST_F(CudaRegionsTest, LongSequencesOfManyHeads) {
  AttentionCase c = Small();
  c.num_q_heads = c.num_kv_heads = 50;
  c.sequences = {{.q_len = 4096, .kv_len = 4096}};
  const Allocation memory(64 * kMiB);
  {
    const std::unique_ptr<DeviceRegion> region = Register(memory.View());
    ExpectAnswer(c, memory.data(), 256);
    ExpectAnswer(c, memory.data(), 2);
  }
  const std::unique_ptr<SharedRegion> shared = NewShared(64 * kMiB);
  ExpectAnswer(c, shared->data(), 256);
}

TEST_F(CudaRegionsTest, ARegionMayBeginAnywhereInItsAllocation) {
  const Allocation memory(64 * kMiB);
  const Allocation small(4096);
  const Allocation neighbour(4096);
  for (const uint64_t offset : {uint64_t{0}, uint64_t{4}, uint64_t{12 * kMiB + 36}}) {
    const std::unique_ptr<DeviceRegion> region = Register(memory.View(offset));
    ExpectAnswer(Small(), memory.data() + offset, 3);
  }
  // Two regions of one allocation at once, and small allocations that the driver may have cut from
  // one block.
  client::DeviceMemoryView low = memory.View();
  low.bytes = 32 * kMiB;
  const std::unique_ptr<DeviceRegion> first = Register(low);
  const std::unique_ptr<DeviceRegion> second = Register(memory.View(32 * kMiB));
  const std::unique_ptr<DeviceRegion> third = Register(small.View());
  const std::unique_ptr<DeviceRegion> fourth = Register(neighbour.View());
  ExpectAnswer(Small(2), memory.data(), 3);
  ExpectAnswer(Small(3), memory.data() + 32 * kMiB, 3);
  AttentionCase tiny = Small();
  tiny.num_q_heads = tiny.num_kv_heads = 1;
  tiny.sequences = {{.q_len = 8, .kv_len = 8}};
  ExpectAnswer(tiny, small.data(), 3);
  ExpectAnswer(tiny, neighbour.data(), 256);
}

TEST_F(CudaRegionsTest, WhatCannotBeOpenedIsRefused) {
  const Allocation memory(4 * kMiB);
  client::DeviceMemoryView view = memory.View();
  view.bytes += 4;
  absl::Status status = client_->RegisterDeviceMemory(view).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("within its 4194304 bytes"));
  view = memory.View();
  view.offset = 4 * kMiB;
  status = client_->RegisterDeviceMemory(view).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  std::vector<uint8_t> garbage(64, 0x5a);
  view = memory.View();
  view.ipc_handle = garbage;
  status = client_->RegisterDeviceMemory(view).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("ipc_handle: CUDA device"));
  std::cout << "a handle of nothing: " << status.message() << "\n";
  const std::unique_ptr<DeviceRegion> region = Register(memory.View());
  ExpectAnswer(Small(), memory.data(), 3);
}

// The same allocation, offered by two clients: the server opens it once.
TEST_F(CudaRegionsTest, TwoClientsMayOfferOneAllocation) {
  const Allocation memory(8 * kMiB);
  const std::unique_ptr<AttentionClient> other = NewClient(*server_);
  auto theirs = other->RegisterDeviceMemory(memory.View());
  ASSERT_TRUE(theirs.ok()) << theirs.status();
  const std::unique_ptr<DeviceRegion> ours = Register(memory.View());
  ExpectAnswer(Small(), memory.data(), 3);
  *theirs = nullptr;
  ExpectAnswer(Small(2), memory.data(), 3);
}

// Memory is registered, used, given back and freed over and over: nothing of it stays behind on the
// device, and nothing is still open when it is freed.
TEST_F(CudaRegionsTest, NothingStaysBehindOnTheDevice) {
  const auto round = [&](uint64_t seed) {
    const Allocation memory(256 * kMiB);
    const std::unique_ptr<DeviceRegion> region = Register(memory.View());
    ExpectAnswer(Small(seed), memory.data(), 3);
  };
  round(1);
  size_t before = 0, after = 0, total = 0;
  ASSERT_CUDA(cudaMemGetInfo(&before, &total));
  for (uint64_t n = 0; n < 20; ++n) round(n);
  ASSERT_CUDA(cudaMemGetInfo(&after, &total));
  EXPECT_GT(after + 128 * kMiB, before) << "as much as half an allocation is missing";
}

TEST_F(CudaRegionsTest, CallersAtOnce) {
  constexpr size_t kEach = 4 * kMiB;
  constexpr int kCallers = 8;
  const Allocation memory(kCallers * kEach);
  const std::unique_ptr<DeviceRegion> region = Register(memory.View());
  const std::unique_ptr<SharedRegion> shared = NewShared(kCallers * kEach);
  std::vector<std::thread> threads;
  for (int caller = 0; caller < kCallers; ++caller) {
    threads.emplace_back([&, caller] {
      ASSERT_CUDA(cudaSetDevice(0));
      const size_t at = static_cast<size_t>(caller) * kEach;
      for (uint64_t n = 0; n < 10; ++n) {
        char* const base = n % 2 == 0 ? memory.data() + at : shared->data() + at;
        ExpectAnswer(Small(100 * static_cast<uint64_t>(caller) + n), base, 3 + n);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(CudaRegionsTest, KilledCallersLeaveNothingAndTheNextCallSucceeds) {
  const Allocation memory(8 * kMiB);
  for (int kill = 0; kill < 20; ++kill) {
    auto caller = ChildProcess::Start(
        ProgramPath("cuda_regions_test"),
        {absl::StrCat(std::string(kCallFlag), server_->unix_target())}, server_->Path("caller"));
    ASSERT_TRUE(caller.ok()) << caller.status();
    const absl::Time give_up = absl::Now() + kPatience;
    while (caller->Output().find("calling") == std::string::npos) {
      ASSERT_TRUE(caller->Running()) << caller->Output();
      ASSERT_LT(absl::Now(), give_up) << caller->Output();
      absl::SleepFor(absl::Milliseconds(1));
    }
    absl::SleepFor(absl::Microseconds(737 * kill));
    ASSERT_TRUE(caller->Running()) << caller->Output();
    caller->Signal(SIGKILL);
    ASSERT_TRUE(caller->Wait(kPatience).ok());
    // While what it had in flight may run still.
    {
      const std::unique_ptr<DeviceRegion> region = Register(memory.View());
      ExpectAnswer(Small(), memory.data(), 3);
    }
    const absl::Status nothing = server_->AwaitNothingHeld(absl::Seconds(10));
    ASSERT_TRUE(nothing.ok()) << nothing << " after kill " << kill << "\n" << server_->Output();
  }
}

// With two devices, a server of its own: how often which one has computed shows.
TEST(CudaRegionsOfTwoDevices, ARequestRunsWhereItsMemoryIs) {
  int devices = 0;
  ASSERT_CUDA(cudaGetDeviceCount(&devices));
  if (devices < 2) GTEST_SKIP() << "needs two devices";
  const auto server = StartServer();
  ASSERT_TRUE(server.ok()) << server.status();
  const std::unique_ptr<AttentionClient> client = NewClient(**server);
  const Allocation on_first(8 * kMiB);
  ASSERT_CUDA(cudaSetDevice(1));
  const Allocation on_second(8 * kMiB);
  ASSERT_CUDA(cudaSetDevice(0));
  auto second = client->RegisterDeviceMemory(on_second.View());
  auto first = client->RegisterDeviceMemory(on_first.View());
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  AttentionCase c;
  c.dtype = DType::kFloat16;
  OwnedProblem owned = Materialise(c);
  const PlacedRequest there(owned, on_second.data(), 3, &Copy);
  for (int n = 0; n < 4; ++n) {
    const auto result = client->Attend(there.request(), {.result = there.result()});
    ASSERT_TRUE(result.ok()) << result.status();
  }
  absl::StatusOr<Samples> samples = (*server)->Metrics();
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_GT((*samples)["flashbias_device_memory_size_bytes{device=\"1\"}"], 0);
  EXPECT_EQ((*samples)["flashbias_device_memory_size_bytes{device=\"0\"}"], 0)
      << "the first device has computed";
  const PlacedRequest here(owned, on_first.data(), 3, &Copy);
  const auto result = client->Attend(here.request(), {.result = here.result()});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(here.OutputBytes(&Copy), there.OutputBytes(&Copy));
  EXPECT_EQ(client->Attend(here.request(), {.result = there.result()}).status().code(),
            absl::StatusCode::kInvalidArgument)
      << "memory of two devices";
}

// Computes in both kinds of regions until it is killed.
int CallUntilKilled(const std::string& target) {
  const auto client = AttentionClient::Create({.target = target});
  if (!client.ok()) return 1;
  constexpr size_t kBytes = 64 * kMiB;
  const Allocation memory(kBytes);
  const auto shared = (*client)->CreateRegion(kBytes);
  const auto device = (*client)->RegisterDeviceMemory(memory.View());
  if (!shared.ok() || !device.ok()) {
    std::cout << shared.status() << " " << device.status() << std::endl;
    return 1;
  }
  std::memset((*shared)->data(), 0, kBytes);
  Copy(memory.data(), (*shared)->data(), kBytes);
  const std::vector<int64_t> shape = {4096, 50, 32};
  constexpr size_t kTensor = size_t{4096} * 50 * 32 * 2;
  std::vector<std::thread> threads;
  for (char* const base : {memory.data(), (*shared)->data(), memory.data()}) {
    threads.emplace_back([&, base] {
      const client::AttendRequest request = {
          .q = {.dtype = DType::kFloat16, .shape = shape, .data = base},
          .k = {.dtype = DType::kFloat16, .shape = shape, .data = base + kTensor},
          .v = {.dtype = DType::kFloat16, .shape = shape, .data = base + 2 * kTensor},
          .mask = client::MaskKind::kFull};
      while ((*client)->Attend(request, {.result = {.o = {base + 3 * kTensor, kTensor}}}).ok()) {
        std::cout << "calling" << std::endl;
      }
      std::_Exit(1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 1;
}

int Main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);  // removes the flags that are gtest's
  if (argc == 2 && std::string_view(argv[1]).starts_with(kCallFlag)) {
    return CallUntilKilled(argv[1] + kCallFlag.size());
  }
  if (argc > 1) {
    std::cerr << "unknown argument '" << argv[1] << "'; known: gtest's flags\n";
    return 2;
  }
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::cout << "no CUDA device: skipped ("
              << (error != cudaSuccess ? cudaGetErrorString(error) : "none found") << ")\n";
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace flashbias::integration

int main(int argc, char** argv) { return flashbias::integration::Main(argc, argv); }
