// Inputs that go to the device while they still arrive: the production CUDA backend over a fake
// device. No GPU.
#include "kernels/upload_ahead.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/heap_allocator.h"
#include "tests/support/arriving_problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/fake_device.h"
#include "tests/support/reference_backend.h"
#include "tests/support/run_backend.h"

namespace flashbias::cuda {
namespace {

using support::ArrivingProblem;
using support::AttentionCase;
using support::FakeDevice;
using support::FakePlanner;
using support::RunAndWait;
using ::testing::ElementsAre;
using ::testing::Pair;

using Call = FakeDevice::Call;

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kPiece = 512;
constexpr ErrorCode kInvalidConfiguration = 9;
constexpr ErrorCode kIllegalAddress = 700;

// 3 heads x 16 of fp16: q, k, v and o take `tokens` times 96 bytes each.
AttentionCase CaseOf(int64_t tokens, uint64_t seed = 1) {
  AttentionCase c;
  c.dtype = DType::kFloat16;
  c.num_q_heads = c.num_kv_heads = 3;
  c.head_dim = 16;
  c.sequences = {{.q_len = tokens, .kv_len = tokens}};
  c.seed = seed;
  return c;
}

std::string ReferenceBytes(const AttentionCase& c) {
  support::ReferenceBackend reference;
  return OutputBytesOf(reference, c);
}

class UploadAheadTest : public ::testing::Test {
 protected:
  ~UploadAheadTest() override {
    backend_.reset();
    pool_.reset();
    EXPECT_EQ(device_->live_objects(), 0) << "something was not given back";
  }
  void Start(size_t device_bytes = 16 * kMiB, int slots = 3, size_t workspace_bytes = 4096) {
    pool_ =
        std::make_shared<PinnedPool>(std::vector<std::shared_ptr<DeviceApi>>{device_}, 64 * kMiB);
    auto backend =
        CudaBackend::Create({.slots = slots,
                             .device_memory_bytes = device_bytes,
                             .direct_copy_bytes = 4096,
                             .ahead_piece_bytes = kPiece},
                            device_, std::make_unique<FakePlanner>(device_.get(), workspace_bytes),
                            pool_, {.name = "cuda", .device_label = "3"});
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }
  absl::Status Run(const ArrivingProblem& request) {
    const AttentionProblem problems[] = {request.problem()};
    return RunAndWait(*backend_, problems).status();
  }
  // Entries of the history that begin so.
  int64_t Count(const std::string& what) const {
    const std::vector<std::string> history = device_->history();
    return std::count_if(history.begin(), history.end(),
                         [&](const std::string& entry) { return absl::StartsWith(entry, what); });
  }
  int64_t DeviceMemory() const { return backend_->usage().device_memory_used_bytes; }

  const std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
  std::shared_ptr<PinnedPool> pool_;
  std::unique_ptr<CudaBackend> backend_;
};

TEST_F(UploadAheadTest, BeginsWithTheFirstPieceAndTheRunCopiesNoInput) {
  Start();
  int64_t runs = 0;
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    AttentionCase c = CaseOf(60);
    c.direction = direction;
    ArrivingProblem request(*backend_, c);
    ASSERT_TRUE(request.has_upload());
    EXPECT_EQ(DeviceMemory(), static_cast<int64_t>(request.input_bytes()));
    request.Send(0.2);  // two pieces of each tensor
    EXPECT_TRUE(device_->WaitForHistory("upload 3", 3)) << "three slots have the streams before";
    request.Send(1);
    ASSERT_TRUE(Run(request).ok());
    EXPECT_TRUE(request.OutputBytes() == ReferenceBytes(c));
    // On the slot's own stream only the plan went up.
    ++runs;
    EXPECT_EQ(Count("upload") - Count("upload 3"), runs);
    EXPECT_EQ(Count("kernel"), runs);
  }
  EXPECT_EQ(DeviceMemory(), 0);
}

// Every case as the server would send it, in chunks of any size.
TEST_F(UploadAheadTest, AnswersAreThoseOfTheKernels) {
  Start();
  for (uint64_t seed = 0; seed < (support::kSlowBuild ? 6 : 40); ++seed) {
    AttentionCase c = support::RandomCase(seed);
    if (c.dtype == DType::kFloat32) c.dtype = DType::kFloat16;
    c.byte_offset = 0;
    if (seed % 2 == 1) c.direction = Direction::kBackward;
    ArrivingProblem request(*backend_, c);
    request.Send(1, 1 + seed * 131 % 5000);
    const AttentionProblem problems[] = {request.problem()};
    const auto stats = RunAndWait(*backend_, problems);
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_EQ((*stats)[0].tiles_skipped, support::FakeTilesSkipped(problems[0])) << Describe(c);
    EXPECT_TRUE(request.OutputBytes() == ReferenceBytes(c)) << Describe(c);
  }
  EXPECT_EQ(DeviceMemory(), 0);
}

// The copies take a while; the kernel must not begin before they are done, nor their time be lost.
TEST_F(UploadAheadTest, ARunWaitsForCopiesThatAreUnderWay) {
  Start();
  const AttentionCase c = CaseOf(60);
  ArrivingProblem request(*backend_, c);
  device_->HoldUploads();
  request.Send(1);
  const AttentionProblem problems[] = {request.problem()};
  absl::StatusOr<std::vector<ProblemStats>> stats;
  std::thread run([&] { stats = RunAndWait(*backend_, problems); });
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(Count("kernel"), 0);
  device_->ReleaseUploads();
  run.join();
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_TRUE(request.OutputBytes() == ReferenceBytes(c));
  EXPECT_GE((*stats)[0].upload, absl::Milliseconds(40)) << "what remained after the run began";
  // On its own stream, the kernel comes after the last copy ahead.
  const std::vector<std::string> history = device_->history();
  const auto kernel = std::find_if(history.begin(), history.end(), [](const std::string& entry) {
    return absl::StartsWith(entry, "kernel");
  });
  EXPECT_EQ(std::count(kernel, history.end(), "upload 3"), 0);
}

TEST_F(UploadAheadTest, PiecesAreNotTiny) {
  Start();
  ArrivingProblem request(*backend_, CaseOf(60));
  request.Send(1, 10);
  ASSERT_TRUE(Run(request).ok());
  // 5760 bytes of each of three tensors in chunks of 10.
  EXPECT_EQ(Count("upload 3"), 3 * 12);
}

TEST_F(UploadAheadTest, AllTogetherTakeAtMostHalfOfTheMemory) {
  Start(/*device_bytes=*/64 << 10);
  ArrivingProblem first(*backend_, CaseOf(60));  // 17664 bytes
  ArrivingProblem second(*backend_, CaseOf(60));
  ArrivingProblem third(*backend_, CaseOf(40));
  EXPECT_TRUE(first.has_upload());
  EXPECT_FALSE(second.has_upload());
  EXPECT_TRUE(third.has_upload());
  first.Cancel();
  ArrivingProblem fourth(*backend_, CaseOf(60));
  EXPECT_TRUE(fourth.has_upload()) << "its share came back";
}

TEST_F(UploadAheadTest, IsNotStartedForNothing) {
  Start();
  EXPECT_EQ(backend_->StartUpload(HostBlock()), nullptr);
  EXPECT_EQ(backend_->StartUpload(*backend_->host_allocator().Allocate(kPiece - 1)), nullptr);
  HeapAllocator heap;
  EXPECT_EQ(backend_->StartUpload(*heap.Allocate(kMiB)), nullptr) << "copies would wait";
  EXPECT_EQ(backend_->StartUpload(*backend_->host_allocator().Allocate(9 * kMiB)), nullptr);
  EXPECT_EQ(DeviceMemory(), 0);
}

// A caller that is slow to send must not keep others from the device.
TEST_F(UploadAheadTest, GivesWayToRunsThatNeedTheMemory) {
  Start(/*device_bytes=*/64 << 10);
  const AttentionCase c = CaseOf(60);
  ArrivingProblem slow(*backend_, c);
  ASSERT_TRUE(slow.has_upload());
  slow.Send(0.5);
  AttentionCase large = CaseOf(140);  // 52 KiB and a workspace
  EXPECT_TRUE(OutputBytesOf(*backend_, large) == ReferenceBytes(large));
  EXPECT_EQ(DeviceMemory(), 0) << "revoked";
  // It goes on as if nothing had been.
  slow.Send(1);
  ASSERT_TRUE(Run(slow).ok());
  EXPECT_TRUE(slow.OutputBytes() == ReferenceBytes(c));
}

TEST_F(UploadAheadTest, GivesWayWhileItsCopiesAreUnderWay) {
  Start(/*device_bytes=*/64 << 10);
  const AttentionCase c = CaseOf(60);
  ArrivingProblem slow(*backend_, c);
  device_->HoldUploads();
  slow.Send(0.7);
  AttentionCase large = CaseOf(140);
  std::string got;
  std::thread run([&] { got = OutputBytesOf(*backend_, large); });
  absl::SleepFor(absl::Milliseconds(20));
  device_->ReleaseUploads();
  run.join();
  EXPECT_TRUE(got == ReferenceBytes(large));
  slow.Send(1);
  ASSERT_TRUE(Run(slow).ok());
  EXPECT_TRUE(slow.OutputBytes() == ReferenceBytes(c));
}

// Its own run cannot get the rest of its memory: it must let go of what it has before it waits.
TEST_F(UploadAheadTest, ARunThatMustWaitForMemoryDropsIt) {
  Start(/*device_bytes=*/64 << 10);
  const AttentionCase large = CaseOf(110);  // 41 KiB and a workspace
  const AttentionCase c = CaseOf(56);       // inputs 16 KiB, o and lse 6 KiB, a workspace
  device_->HoldKernels();
  std::string got;
  std::thread run([&] { got = OutputBytesOf(*backend_, large); });
  ASSERT_TRUE(device_->WaitForHistory("upload", 2));
  ArrivingProblem request(*backend_, c);
  ASSERT_TRUE(request.has_upload());
  request.Send(1);
  absl::Status status;
  std::thread second([&] { status = Run(request); });
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(Count("kernel"), 0);
  device_->ReleaseKernels();
  run.join();
  second.join();
  EXPECT_TRUE(got == ReferenceBytes(large));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(request.OutputBytes() == ReferenceBytes(c));
  EXPECT_EQ(DeviceMemory(), 0) << "dropped, though its owner is still there";
}

// Each could have the rest of its memory if the other one gave its mirror back.
TEST_F(UploadAheadTest, RunsThatWaitForMemoryDoNotWaitForEachOther) {
  constexpr size_t kMemory = 64 << 10;
  constexpr size_t kWorkspace = 181 * 256;
  const AttentionCase c = CaseOf(27);  // inputs 8448 bytes, o and lse 3328
  static_assert(kWorkspace + 3328 + 8448 <= kMemory, "alone it fits");
  static_assert(kWorkspace + 3328 + 2 * 8448 > kMemory, "beside another one's inputs it does not");
  Start(kMemory, /*slots=*/3, kWorkspace);
  const AttentionCase tiny = CaseOf(1);
  device_->HoldKernels();
  std::thread first([&] { EXPECT_TRUE(OutputBytesOf(*backend_, tiny) == ReferenceBytes(tiny)); });
  ASSERT_TRUE(device_->WaitForHistory("upload", 2));
  ArrivingProblem a(*backend_, c);
  ArrivingProblem b(*backend_, c);
  std::vector<std::thread> runs;
  for (ArrivingProblem* const request : {&a, &b}) {
    ASSERT_TRUE(request->has_upload());
    request->Send(1);
    runs.emplace_back([this, request] { EXPECT_TRUE(Run(*request).ok()); });
  }
  absl::SleepFor(absl::Milliseconds(50));
  device_->ReleaseKernels();
  first.join();
  for (std::thread& run : runs) run.join();
  EXPECT_TRUE(a.OutputBytes() == ReferenceBytes(c));
  EXPECT_TRUE(b.OutputBytes() == ReferenceBytes(c));
}

TEST_F(UploadAheadTest, ABatchOfSeveralGoesInPartsToo) {
  Start(/*device_bytes=*/64 << 10);
  std::vector<std::unique_ptr<ArrivingProblem>> requests;
  std::vector<AttentionProblem> batch;
  for (uint64_t n = 0; n < 6; ++n) {
    requests.push_back(std::make_unique<ArrivingProblem>(*backend_, CaseOf(30, n)));
    requests.back()->Send(1);
    batch.push_back(requests.back()->problem());
  }
  EXPECT_TRUE(requests[0]->has_upload());
  const auto stats = RunAndWait(*backend_, batch);
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_GT(Count("kernel"), 1);
  for (uint64_t n = 0; n < 6; ++n) {
    EXPECT_TRUE(requests[n]->OutputBytes() == ReferenceBytes(CaseOf(30, n)));
  }
}

// Errors from which the device recovers cost the upload ahead, never the request.
TEST_F(UploadAheadTest, AnErrorIsNoneOfTheRequests) {
  Start();
  int errors = 0;
  for (const Call call : {Call::kCopy, Call::kRecord, Call::kUse}) {
    for (const int skip : {0, 1, 3}) {
      const AttentionCase c = CaseOf(60, static_cast<uint64_t>(errors));
      ArrivingProblem request(*backend_, c);
      ASSERT_TRUE(request.has_upload());
      // Workers of the run before may be at the device still.
      device_->FailNextHere(call, kInvalidConfiguration, skip);
      request.Send(1);
      EXPECT_EQ(DeviceMemory(), 0) << "given back at once";
      ASSERT_TRUE(Run(request).ok());
      EXPECT_TRUE(request.OutputBytes() == ReferenceBytes(c));
      ++errors;
    }
  }
  EXPECT_THAT(backend_->usage().errors, ElementsAre(Pair("fakeError9", errors)));
  EXPECT_TRUE(backend_->health().ok());
}

TEST_F(UploadAheadTest, ARunThatCannotWaitForItCopiesEverything) {
  Start();
  const AttentionCase c = CaseOf(60);
  ArrivingProblem request(*backend_, c);
  request.Send(1);
  device_->FailNext(Call::kStreamWait, kInvalidConfiguration, /*sticky=*/false);
  ASSERT_TRUE(Run(request).ok());
  EXPECT_TRUE(request.OutputBytes() == ReferenceBytes(c));
  EXPECT_EQ(DeviceMemory(), 0);
}

TEST_F(UploadAheadTest, ABrokenDeviceHangsNobody) {
  Start();
  ArrivingProblem request(*backend_, CaseOf(60));
  ArrivingProblem other(*backend_, CaseOf(60));
  other.Send(0.5);
  device_->FailNext(Call::kCopy, kIllegalAddress, /*sticky=*/true);
  request.Send(1);
  other.Send(1);
  EXPECT_EQ(Run(request).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(backend_->health().code(), absl::StatusCode::kInternal);
  ArrivingProblem late(*backend_, CaseOf(60));
  EXPECT_FALSE(late.has_upload());
}

// The block goes right after; AddressSanitizer sees a copy that still reads it.
TEST_F(UploadAheadTest, ACancelledOneWaitsForItsCopiesAndGivesEverythingBack) {
  Start();
  device_->HoldUploads();
  auto request = std::make_unique<ArrivingProblem>(*backend_, CaseOf(60));
  request->Send(0.6);
  std::atomic<bool> gone = false;
  std::thread cancels([&] {
    request = nullptr;
    gone = true;
  });
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(gone);
  device_->ReleaseUploads();
  cancels.join();
  EXPECT_EQ(DeviceMemory(), 0);
  EXPECT_EQ(backend_->usage().pinned_used_bytes, 0);
}

// Many callers, some of whom leave, too little memory for all, one slot or several: each gets its
// own answer and nothing hangs.
TEST_F(UploadAheadTest, Stress) {
  for (const int slots : {1, 3}) {
    Start(/*device_bytes=*/64 << 10, slots);
    std::vector<std::thread> threads;
    for (uint64_t thread = 0; thread < 6; ++thread) {
      threads.emplace_back([&, thread] {
        for (uint64_t n = 0; n < (support::kSlowBuild ? 8 : 25); ++n) {
          // Backward problems have twice as many tensors.
          const bool backward = n % 3 == 1;
          const auto tokens =
              static_cast<int64_t>(10 + (thread * 37 + n * 23) % (backward ? 45 : 100));
          AttentionCase c = CaseOf(tokens, 100 * thread + n);
          if (backward) c.direction = Direction::kBackward;
          ArrivingProblem request(*backend_, c);
          request.Send(0.5, 64 + 100 * n);
          if (n % 5 == 4) continue;
          if (n % 7 == 3) absl::SleepFor(absl::Milliseconds(2));
          request.Send(1);
          const absl::Status status = Run(request);
          EXPECT_TRUE(status.ok()) << status;
          EXPECT_TRUE(request.OutputBytes() == ReferenceBytes(c)) << Describe(c);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(DeviceMemory(), 0);
    EXPECT_EQ(backend_->usage().pinned_used_bytes, 0);
    backend_.reset();
  }
}

}  // namespace
}  // namespace flashbias::cuda
