// The production CUDA backend over a fake device: slots, overlap, memory, errors. No GPU.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/problem_tensors.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/fake_device.h"
#include "tests/support/output_bytes.h"
#include "tests/support/pinned_problem.h"
#include "tests/support/reference_backend.h"
#include "tests/support/run_backend.h"

namespace flashbias::cuda {
namespace {

using support::AttentionCase;
using support::Describe;
using support::FakeDevice;
using support::FakePlanner;
using support::ForeignMemory;
using support::Materialise;
using support::OwnedProblem;
using support::PinnedProblem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::StartsWith;

using Call = FakeDevice::Call;

constexpr size_t kMiB = size_t{1} << 20;
constexpr ErrorCode kIllegalAddress = 700;
constexpr ErrorCode kInvalidConfiguration = 9;

// A run that the test can wait for. No absl::Notification: ThreadSanitizer does not see the order
// that the packaged one makes.
class Flight {
 public:
  Flight(AttentionBackend& backend, std::vector<AttentionProblem> problems)
      : problems_(std::move(problems)), stats_(problems_.size()) {
    backend.Run(problems_, absl::MakeSpan(stats_), [this](absl::Status status) {
      absl::MutexLock lock(&mutex_);
      status_ = std::move(status);
      done_ = true;
    });
  }
  Flight(AttentionBackend& backend, const OwnedProblem& owned)
      : Flight(backend, std::vector<AttentionProblem>{owned.problem()}) {}
  ~Flight() { static_cast<void>(Wait()); }

  bool done() const {
    absl::MutexLock lock(&mutex_);
    return done_;
  }
  absl::Status Wait() const {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
    return status_;
  }
  // REQUIRES: done().
  const std::vector<ProblemStats>& stats() const { return stats_; }

 private:
  const std::vector<AttentionProblem> problems_;
  std::vector<ProblemStats> stats_;
  mutable absl::Mutex mutex_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

class CudaBackendTest : public ::testing::Test {
 protected:
  ~CudaBackendTest() override {
    backend_.reset();
    pool_.reset();
    EXPECT_EQ(device_->live_objects(), 0) << "something was not given back";
  }

  void Start(const CudaBackendOptions& options, size_t pinned_bytes = 64 * kMiB,
             size_t bound_bytes = 4096, size_t workspace_bytes = 4096) {
    pool_ = std::make_shared<PinnedPool>(std::vector<std::shared_ptr<DeviceApi>>{device_},
                                         pinned_bytes);
    auto backend = CudaBackend::Create(
        options, device_,
        std::make_unique<FakePlanner>(device_.get(), bound_bytes, workspace_bytes), pool_,
        {.name = "cuda", .device_label = "3", .dtypes = {DType::kFloat16}});
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }
  static CudaBackendOptions Options() {
    return {.slots = 3, .device_memory_bytes = 16 * kMiB, .direct_copy_bytes = 0};
  }
  void Start() { Start(Options()); }

  std::vector<std::string> History() const { return device_->history(); }

  const std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
  std::shared_ptr<PinnedPool> pool_;
  std::unique_ptr<CudaBackend> backend_;
};

AttentionCase Small(uint64_t seed = 1) {
  AttentionCase c;
  c.dtype = DType::kFloat16;
  c.seed = seed;
  return c;
}

AttentionCase Backward(AttentionCase c) {
  c.direction = Direction::kBackward;
  return c;
}

bool IsKernel(const std::string& entry) { return entry.starts_with("kernel"); }

std::string ReferenceBytes(const AttentionCase& c) {
  support::ReferenceBackend reference;
  return OutputBytesOf(reference, c);
}

TEST_F(CudaBackendTest, AnswersAreThoseOfTheKernels) {
  Start();
  for (uint64_t seed = 0; seed < (support::kSlowBuild ? 6 : 40); ++seed) {
    const AttentionCase c = support::RandomCase(seed);
    EXPECT_TRUE(OutputBytesOf(*backend_, c) == ReferenceBytes(c)) << Describe(c);
  }
  EXPECT_EQ(backend_->usage().device_memory_used_bytes, 0);
  EXPECT_EQ(backend_->usage().pinned_used_bytes, 0);
}

TEST_F(CudaBackendTest, UsageNamesTheLimits) {
  Start();
  EXPECT_EQ(backend_->usage().device_memory_limit_bytes, 16 * kMiB);
  EXPECT_EQ(backend_->usage().pinned_limit_bytes, pool_->max_bytes());
}

// What the kernels read of o and lse shows in the count of skipped tiles.
TEST_F(CudaBackendTest, GradientsAreThoseOfTheKernels) {
  for (const size_t direct_copy_bytes : {size_t{0}, kMiB}) {
    CudaBackendOptions options = Options();
    options.direct_copy_bytes = direct_copy_bytes;
    Start(options);
    for (uint64_t seed = 0; seed < (support::kSlowBuild ? 6 : 40); ++seed) {
      AttentionCase c = Backward(support::RandomCase(seed));
      c.want_bias_gradient = seed % 3 != 0;
      SCOPED_TRACE(Describe(c));
      const std::string expected = ReferenceBytes(c);
      OwnedProblem owned = Materialise(c);
      const auto stats = support::RunAndWait(*backend_, owned);
      ASSERT_TRUE(stats.ok()) << stats.status();
      EXPECT_EQ(owned.CheckOutputs(), "");
      EXPECT_TRUE(owned.OutputBytes() == expected);
      EXPECT_EQ(stats->tiles_skipped, support::FakeTilesSkipped(owned.problem()));

      const PinnedProblem pinned(backend_->host_allocator(), owned);
      const Flight flight(*backend_, {pinned.problem()});
      ASSERT_TRUE(flight.Wait().ok()) << flight.Wait();
      EXPECT_TRUE(pinned.OutputBytes() == expected);
      EXPECT_EQ(flight.stats()[0].tiles_skipped, stats->tiles_skipped);
    }
    EXPECT_EQ(backend_->usage().device_memory_used_bytes, 0);
    EXPECT_EQ(backend_->usage().pinned_used_bytes, 0);
  }
}

TEST_F(CudaBackendTest, ABatchMayMixDirections) {
  Start();
  std::vector<AttentionCase> cases;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    cases.push_back(Small(seed));
    cases.push_back(Backward(Small(seed)));
  }
  cases[5].sequences = {{.q_len = 0, .kv_len = 3}, {.q_len = 2, .kv_len = 0}};
  std::vector<OwnedProblem> owned;
  std::vector<AttentionProblem> batch;
  for (const AttentionCase& c : cases) {
    owned.push_back(Materialise(c));
    batch.push_back(owned.back().problem());
  }
  const auto stats = support::RunAndWait(*backend_, batch);
  ASSERT_TRUE(stats.ok()) << stats.status();
  for (size_t n = 0; n < cases.size(); ++n) {
    EXPECT_TRUE(owned[n].OutputBytes() == ReferenceBytes(cases[n])) << Describe(cases[n]);
    EXPECT_EQ((*stats)[n].tiles_skipped, support::FakeTilesSkipped(batch[n]));
  }
  const std::vector<std::string> history = History();
  EXPECT_EQ(std::count_if(history.begin(), history.end(), IsKernel), 2) << "one a direction";
}

TEST_F(CudaBackendTest, DevicesShareAPoolAndStayApart) {
  const auto second = std::make_shared<FakeDevice>();
  pool_ = std::make_shared<PinnedPool>(std::vector<std::shared_ptr<DeviceApi>>{device_, second},
                                       64 * kMiB);
  for (const std::shared_ptr<FakeDevice>& device : {second, device_}) {
    auto backend = CudaBackend::Create(
        Options(), device, std::make_unique<FakePlanner>(device.get(), 4096, 4096), pool_,
        {.name = "cuda", .device_label = "3", .dtypes = {DType::kFloat16}});
    ASSERT_TRUE(backend.ok()) << backend.status();
    // The pool is cold: it takes memory by way of the first device.
    EXPECT_TRUE(OutputBytesOf(**backend, Small()) == ReferenceBytes(Small()));
  }
  pool_.reset();
  EXPECT_EQ(second->live_objects(), 0);
}

TEST_F(CudaBackendTest, ABatchMayMixGroups) {
  Start();
  std::vector<AttentionCase> cases(6, Small());
  cases[1].head_dim = 64;
  cases[2].bias = BiasKind::kLowRank;
  cases[3].dtype = DType::kBFloat16;
  cases[4].want_lse = false;
  cases[5].sequences = {{.q_len = 0, .kv_len = 0}};
  std::vector<OwnedProblem> owned;
  std::vector<AttentionProblem> batch;
  for (const AttentionCase& c : cases) {
    owned.push_back(Materialise(c));
    batch.push_back(owned.back().problem());
  }
  const auto stats = support::RunAndWait(*backend_, batch);
  ASSERT_TRUE(stats.ok()) << stats.status();
  for (size_t n = 0; n < cases.size(); ++n) {
    EXPECT_TRUE(owned[n].OutputBytes() == ReferenceBytes(cases[n])) << Describe(cases[n]);
    EXPECT_EQ((*stats)[n].tiles_skipped, 7);
  }
  const std::vector<std::string> history = History();
  EXPECT_EQ(std::count_if(history.begin(), history.end(), IsKernel), 4) << "one a group";
}

// Tensors in blocks of host_allocator() reach the device without a copy in between: one transfer
// each, and no staging but for the plan and the tile counts.
TEST_F(CudaBackendTest, PinnedTensorsGoDirectly) {
  Start();
  const AttentionCase c = Small();
  {
    const OwnedProblem owned = Materialise(c);
    const PinnedProblem pinned(backend_->host_allocator(), owned);
    Flight flight(*backend_, {pinned.problem()});
    ASSERT_TRUE(flight.Wait().ok()) << flight.Wait();
    EXPECT_TRUE(pinned.OutputBytes() == ReferenceBytes(c));
  }
  // q, k, v, plan; o, lse, tile counts.
  EXPECT_THAT(History(),
              ElementsAre(StartsWith("upload"), StartsWith("upload"), StartsWith("upload"),
                          StartsWith("upload"), StartsWith("kernel"), StartsWith("download"),
                          StartsWith("download"), StartsWith("download")));
}

TEST_F(CudaBackendTest, PinnedTensorsOfABackwardProblemGoDirectly) {
  Start();
  const AttentionCase c = Backward(Small());
  {
    const OwnedProblem owned = Materialise(c);
    const PinnedProblem pinned(backend_->host_allocator(), owned);
    Flight flight(*backend_, {pinned.problem()});
    ASSERT_TRUE(flight.Wait().ok()) << flight.Wait();
    EXPECT_TRUE(pinned.OutputBytes() == ReferenceBytes(c));
  }
  const std::vector<std::string> history = History();
  const auto count = [&](const char* what) {
    return std::count_if(history.begin(), history.end(),
                         [&](const std::string& entry) { return entry.starts_with(what); });
  };
  EXPECT_EQ(count("upload"), 7) << "q, k, v, lse, o, d_o, plan";
  EXPECT_EQ(count("download"), 5) << "dslopes, dq, dk, dv, tile counts";
}

// So do those in registered memory: here, q at its very end, and o.
TEST_F(CudaBackendTest, RegisteredTensorsGoDirectly) {
  Start();
  const AttentionCase c = Small();
  const OwnedProblem owned = Materialise(c);
  AttentionProblem problem = owned.problem();
  const size_t bytes = owned.q_elements() * sizeof(uint16_t);
  std::vector<char> memory(3 * bytes);
  char* const q = memory.data() + 2 * bytes;
  std::memcpy(q, problem.q, bytes);
  problem.q = q;
  problem.o = memory.data();
  {
    const auto registration = pool_->Register(memory.data(), memory.size());
    ASSERT_TRUE(registration.ok()) << registration.status();
    EXPECT_EQ(backend_->usage().registered_bytes, static_cast<int64_t>(3 * bytes));
    Flight flight(*backend_, {problem});
    ASSERT_TRUE(flight.Wait().ok()) << flight.Wait();
  }
  EXPECT_EQ(backend_->usage().registered_bytes, 0);
  EXPECT_EQ(std::string(memory.data(), bytes), ReferenceBytes(c).substr(0, bytes));
  // q, k and v together, plan; lse, tile counts, o.
  EXPECT_THAT(History(),
              ElementsAre(StartsWith("upload"), StartsWith("upload"), StartsWith("upload"),
                          StartsWith("kernel"), StartsWith("download"), StartsWith("download"),
                          StartsWith("download")));
}

// One that only begins in registered memory is gathered: the device would refuse the copy.
TEST_F(CudaBackendTest, TensorsThatCrossTheBorderOfRegisteredMemoryAreGathered) {
  Start();
  const AttentionCase c = Small();
  const OwnedProblem owned = Materialise(c);
  AttentionProblem problem = owned.problem();
  const size_t bytes = owned.q_elements() * sizeof(uint16_t);
  std::vector<char> memory(2 * bytes);
  char* const q = memory.data();
  std::memcpy(q, problem.q, bytes);
  problem.q = q;
  problem.o = memory.data() + bytes;
  const auto first = pool_->Register(memory.data(), bytes - 1);
  const auto second = pool_->Register(memory.data() + bytes + 1, bytes - 1);
  ASSERT_TRUE(first.ok() && second.ok());
  Flight flight(*backend_, {problem});
  ASSERT_TRUE(flight.Wait().ok()) << flight.Wait();
  EXPECT_EQ(std::string(memory.data() + bytes, bytes), ReferenceBytes(c).substr(0, bytes));
  // All tensors together, plan; results and tile counts together.
  EXPECT_THAT(History(),
              ElementsAre(StartsWith("upload"), StartsWith("upload"), StartsWith("kernel"),
                          StartsWith("download"), StartsWith("download")));
}

// A problem whose tensors lie in device memory of another process: where that is for it, and what
// the backend is given.
class OnDevice {
 public:
  OnDevice(FakeDevice& device, CudaBackend& backend, const OwnedProblem& owned, TensorSet which)
      : memory_(1 << 20, 'm'), problem_(owned.problem()) {
    device.Import(memory_);
    auto opened = backend.OpenDeviceMemory(memory_.handle(), 0, memory_.size(), {});
    EXPECT_TRUE(opened.ok()) << opened.status();
    opened_ = *std::move(opened);
    callers_ = problem_;
    for (const ProblemTensor& tensor : TensorsOf(problem_)) {
      if ((tensor.tensor & which) == 0) continue;
      constexpr TensorSet kFloats =
          kTensorLse | kTensorDSlopes | kTensorDPhiQ | kTensorDPhiK;  // aligned as floats
      if (tensor.tensor & kFloats) at_ = (at_ + 3) / 4 * 4;
      if (tensor.is_input) std::memcpy(memory_.data() + at_, tensor.data, tensor.bytes);
      PointAt(tensor.tensor, memory_.data() + at_, &callers_);
      PointAt(tensor.tensor, opened_->data() + at_, &problem_);
      at_ += tensor.bytes + 1;
    }
    problem_.on_device = which;
  }

  const AttentionProblem& problem() const { return problem_; }
  std::string OutputBytes() const { return support::OutputBytes(callers_); }

 private:
  const ForeignMemory memory_;
  std::unique_ptr<DeviceMemory> opened_;
  size_t at_ = 1;  // odd, but for floats
  AttentionProblem problem_;
  AttentionProblem callers_;  // as the other process sees it
};

constexpr TensorSet kAllTensors = (1 << 14) - 1;

TEST_F(CudaBackendTest, TensorsOnTheDeviceAreUsedThere) {
  Start();
  AttentionCase c = Small();
  c.bias = BiasKind::kLowRank;
  {
    const OwnedProblem owned = Materialise(c);
    const OnDevice on_device(*device_, *backend_, owned, kAllTensors);
    Flight flight(*backend_, {on_device.problem()});
    ASSERT_TRUE(flight.Wait().ok()) << flight.Wait();
    EXPECT_TRUE(on_device.OutputBytes() == ReferenceBytes(c));
  }
  // The plan, and the tile counts.
  EXPECT_THAT(History(),
              ElementsAre(StartsWith("upload"), StartsWith("kernel"), StartsWith("download")));
  EXPECT_EQ(device_->open_ipc(), 0);
}

TEST_F(CudaBackendTest, TensorsOfABackwardProblemOnTheDeviceAreUsedThere) {
  Start();
  AttentionCase c = Backward(Small());
  const TensorSet with_alibi = kTensorQ | kTensorLse | kTensorDSlopes;
  for (const BiasKind bias : {BiasKind::kAlibi, BiasKind::kLowRank}) {
    c.bias = bias;
    const std::string expected = ReferenceBytes(c);
    std::vector<TensorSet> sets = {0, kAllTensors, with_alibi};
    for (int bit = 0; bit < 14; ++bit) {
      sets.push_back(static_cast<TensorSet>(1 << bit));
      sets.push_back(static_cast<TensorSet>(kAllTensors & ~(1 << bit)));
    }
    for (const TensorSet which : sets) {
      const OwnedProblem owned = Materialise(c);
      const OnDevice on_device(*device_, *backend_, owned, which);
      const size_t before = History().size();
      const Flight flight(*backend_, {on_device.problem()});
      ASSERT_TRUE(flight.Wait().ok()) << flight.Wait();
      EXPECT_TRUE(on_device.OutputBytes() == expected) << int{which};
      EXPECT_EQ(flight.stats()[0].tiles_skipped, support::FakeTilesSkipped(owned.problem()))
          << int{which};
      if (which == kAllTensors) {
        EXPECT_EQ(History().size(), before + 3) << "the plan, the kernel, the tile counts";
      }
    }
  }
  EXPECT_EQ(device_->open_ipc(), 0);
}

TEST_F(CudaBackendTest, AnyMixtureOfPlacesGivesTheSameAnswer) {
  Start();
  AttentionCase c = Small();
  c.bias = BiasKind::kLowRank;
  const std::string expected = ReferenceBytes(c);
  for (const TensorSet which :
       {TensorSet{0}, kTensorQ, kTensorK, kTensorV, kTensorPhiQ, kTensorPhiK, kTensorO, kTensorLse,
        TensorSet{kAllTensors & ~kTensorO}, TensorSet{kTensorQ | kTensorO}}) {
    const OwnedProblem owned = Materialise(c);
    const OwnedProblem inline_owned = Materialise(Small(7));
    const OnDevice on_device(*device_, *backend_, owned, which);
    Flight flight(*backend_, {inline_owned.problem(), on_device.problem()});
    ASSERT_TRUE(flight.Wait().ok()) << flight.Wait();
    EXPECT_TRUE(on_device.OutputBytes() == expected) << int{which};
    EXPECT_TRUE(inline_owned.OutputBytes() == ReferenceBytes(Small(7))) << int{which};
  }
}

TEST_F(CudaBackendTest, WhatIsOnTheDeviceTakesNoMemoryThere) {
  CudaBackendOptions options = Options();
  options.device_memory_bytes = 8 << 10;
  Start(options);
  const OwnedProblem owned = Materialise(Small());
  EXPECT_FALSE(backend_->Admit(owned.problem()).ok());
  const OnDevice on_device(*device_, *backend_, owned, kAllTensors);
  EXPECT_TRUE(backend_->Admit(on_device.problem()).ok());
  Flight flight(*backend_, {on_device.problem()});
  EXPECT_TRUE(flight.Wait().ok()) << flight.Wait();
  EXPECT_TRUE(on_device.OutputBytes() == ReferenceBytes(Small()));
}

TEST_F(CudaBackendTest, ABrokenDeviceOpensNothing) {
  Start();
  device_->FailNext(Call::kKernel, kIllegalAddress, /*sticky=*/true);
  const OwnedProblem owned = Materialise(Small());
  {
    Flight flight(*backend_, owned);
    EXPECT_FALSE(flight.Wait().ok());
  }
  const ForeignMemory memory(4096, 'm');
  device_->Import(memory);
  EXPECT_EQ(backend_->OpenDeviceMemory(memory.handle(), 0, 1, {}).status(), backend_->health());
  EXPECT_EQ(device_->opened_ipc(), 0);
}

TEST_F(CudaBackendTest, MemoryOfAnotherDeviceIsNotOpened) {
  Start();
  const ForeignMemory memory(4096, 'm');
  device_->Import(memory);
  const std::vector<uint8_t> unknown(16, 0);
  EXPECT_TRUE(backend_->OpenDeviceMemory(memory.handle(), 0, 1, unknown).ok());
  const std::vector<uint8_t> other(16, 7);
  const absl::Status status = backend_->OpenDeviceMemory(memory.handle(), 0, 1, other).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("device_uuid is not that of CUDA device 3"));
}

// An answer may let go of memory on another device (an upload ahead that no run used).
TEST_F(CudaBackendTest, WhateverDoneLeavesCurrentTheNextRunHasItsDevice) {
  CudaBackendOptions options = Options();
  options.slots = 1;
  Start(options);
  FakeDevice other;
  const OwnedProblem owned = Materialise(Small());
  const std::vector<AttentionProblem> many(20, owned.problem());  // left to a worker
  for (int n = 0; n < 6; ++n) {
    std::vector<ProblemStats> stats(many.size());
    absl::Mutex mutex;
    bool done = false;
    absl::Status status;
    backend_->Run(many, absl::MakeSpan(stats), [&](absl::Status result) {
      EXPECT_EQ(other.Use(), kSuccess);
      absl::MutexLock lock(&mutex);
      status = std::move(result);
      done = true;
    });
    absl::MutexLock lock(&mutex);
    mutex.Await(absl::Condition(&done));
    EXPECT_TRUE(status.ok()) << status << ", run " << n;
  }
}

TEST_F(CudaBackendTest, SmallTensorsTravelTogether) {
  CudaBackendOptions options = Options();
  options.direct_copy_bytes = kMiB;
  Start(options);
  const AttentionCase c = Small();
  const OwnedProblem pageable = Materialise(c);
  const PinnedProblem pinned(backend_->host_allocator(), pageable);
  Flight flight(*backend_, {pageable.problem(), pinned.problem()});
  ASSERT_TRUE(flight.Wait().ok()) << flight.Wait();
  EXPECT_TRUE(pageable.OutputBytes() == ReferenceBytes(c));
  EXPECT_TRUE(pinned.OutputBytes() == ReferenceBytes(c));
  // Six inputs, plan; four outputs, tile counts.
  EXPECT_THAT(History(),
              ElementsAre(StartsWith("upload"), StartsWith("upload"), StartsWith("kernel"),
                          StartsWith("download"), StartsWith("download")));
}

// Larger than a piece of the gathering, and not a multiple of it.
TEST_F(CudaBackendTest, LargePageableTensorsGoInPieces) {
  Start();
  AttentionCase c = Small();
  c.num_q_heads = c.num_kv_heads = 1;
  c.head_dim = 128;
  c.sequences = {{.q_len = 3, .kv_len = 13001}};
  EXPECT_TRUE(OutputBytesOf(*backend_, c) == ReferenceBytes(c));
  const std::vector<std::string> history = History();
  EXPECT_GE(std::count_if(history.begin(), history.end(),
                          [](const std::string& entry) { return entry.starts_with("upload"); }),
            4);
}

// As the server lays a request out: one block for q, k and v, each at a multiple of 256 bytes.
TEST_F(CudaBackendTest, TensorsThatFollowEachOtherAreOneCopy) {
  Start();
  AttentionCase c = Small();
  const OwnedProblem owned = Materialise(c);
  AttentionProblem problem = owned.problem();
  const size_t q_bytes = owned.q_elements() * sizeof(uint16_t);
  const size_t kv_bytes = owned.kv_elements() * sizeof(uint16_t);
  const size_t k_at = AlignTensor(q_bytes);
  const size_t v_at = k_at + AlignTensor(kv_bytes);
  const HostBlock inputs = *pool_->Allocate(v_at + kv_bytes);
  const HostBlock outputs = *pool_->Allocate(q_bytes);
  std::memcpy(inputs.data(), problem.q, q_bytes);
  std::memcpy(inputs.data() + k_at, problem.k, kv_bytes);
  std::memcpy(inputs.data() + v_at, problem.v, kv_bytes);
  problem.q = inputs.data();
  problem.k = inputs.data() + k_at;
  problem.v = inputs.data() + v_at;
  problem.o = outputs.data();
  problem.lse = nullptr;
  ASSERT_TRUE(Flight(*backend_, {problem}).Wait().ok());
  EXPECT_THAT(History(),
              ElementsAre(StartsWith("upload"), StartsWith("upload"), StartsWith("kernel"),
                          StartsWith("download"), StartsWith("download")))
      << "the inputs and the plan; o and the counts";
  EXPECT_EQ(std::memcmp(problem.o, ReferenceBytes(c).data(), q_bytes), 0);
}

// While one run's kernel is held, the next runs upload on streams of their own.
TEST_F(CudaBackendTest, RunsOverlap) {
  Start();
  device_->HoldKernels();
  const OwnedProblem a = Materialise(Small(1));
  const OwnedProblem b = Materialise(Small(2));
  const OwnedProblem c = Materialise(Small(3));
  const OwnedProblem d = Materialise(Small(4));
  Flight first(*backend_, a);
  ASSERT_TRUE(device_->WaitForHistory("upload", 2));
  Flight second(*backend_, b);
  Flight third(*backend_, c);
  ASSERT_TRUE(device_->WaitForHistory("upload", 6)) << "tensors and plan of three runs";
  Flight fourth(*backend_, d);
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(first.done());
  EXPECT_EQ(History().size(), 6) << "the fourth waits for a slot";
  device_->ReleaseKernels();
  for (Flight* const flight : {&first, &second, &third, &fourth}) {
    EXPECT_TRUE(flight->Wait().ok()) << flight->Wait();
  }
  EXPECT_TRUE(a.OutputBytes() == ReferenceBytes(Small(1)));
  EXPECT_TRUE(d.OutputBytes() == ReferenceBytes(Small(4)));
}

// On its own stream every run is in order.
TEST_F(CudaBackendTest, EachStreamIsInOrder) {
  Start();
  std::vector<OwnedProblem> owned;
  for (uint64_t seed = 0; seed < 12; ++seed) owned.push_back(Materialise(Small(seed)));
  {
    std::vector<std::unique_ptr<Flight>> flights;
    flights.reserve(owned.size());
    for (const OwnedProblem& problem : owned) {
      flights.push_back(std::make_unique<Flight>(*backend_, problem));
    }
  }
  const std::vector<std::string> history = History();
  for (const char* stream : {" 0", " 1", " 2"}) {
    std::string order;
    for (const std::string& entry : history) {
      if (entry.ends_with(stream)) order += entry[0];
    }
    EXPECT_EQ(order.size() % 5, 0);
    for (size_t n = 0; n < order.size(); n += 5) EXPECT_EQ(order.substr(n, 5), "uukdd");
  }
}

TEST_F(CudaBackendTest, PhasesAreMeasured) {
  Start();
  device_->HoldKernels();
  const OwnedProblem owned = Materialise(Small());
  const absl::Time start = absl::Now();
  Flight flight(*backend_, owned);
  ASSERT_TRUE(device_->WaitForHistory("upload", 2));
  absl::SleepFor(absl::Milliseconds(400));
  device_->ReleaseKernels();
  ASSERT_TRUE(flight.Wait().ok());
  const absl::Duration total = absl::Now() - start;
  const ProblemStats& stats = flight.stats()[0];
  EXPECT_GE(stats.kernel, absl::Milliseconds(400));
  EXPECT_GT(stats.upload, absl::ZeroDuration());
  EXPECT_GT(stats.download, absl::ZeroDuration());
  const absl::Duration sum = stats.upload + stats.kernel + stats.download;
  EXPECT_LE(sum, total);
  EXPECT_GE(sum, 0.9 * total);
}

TEST_F(CudaBackendTest, OnceWarmNothingIsAllocated) {
  Start();
  const AttentionCase c = support::BigRandomCase(3);
  OutputBytesOf(*backend_, c);
  const int pinned = device_->pinned_calls();
  const int device = device_->device_calls();
  for (int n = 0; n < 10; ++n) OutputBytesOf(*backend_, c);
  EXPECT_EQ(device_->pinned_calls(), pinned);
  EXPECT_EQ(device_->device_calls(), device);
}

TEST_F(CudaBackendTest, WithoutPinnedMemoryItIsSlowerNotStuck) {
  Start(Options(), /*pinned_bytes=*/0);
  EXPECT_TRUE(OutputBytesOf(*backend_, Small()) == ReferenceBytes(Small()));
  EXPECT_EQ(device_->pinned_bytes(), 0);
}

TEST_F(CudaBackendTest, ABatchThatDoesNotFitGoesInParts) {
  CudaBackendOptions options = Options();
  options.device_memory_bytes = 26 << 10;  // a problem takes 8448 bytes and 4096 of workspace
  Start(options);
  std::vector<OwnedProblem> owned;
  std::vector<AttentionProblem> batch;
  for (uint64_t seed = 0; seed < 7; ++seed) {
    owned.push_back(Materialise(Small(seed)));
    batch.push_back(owned.back().problem());
  }
  const auto stats = support::RunAndWait(*backend_, batch);
  ASSERT_TRUE(stats.ok()) << stats.status();
  for (uint64_t seed = 0; seed < 7; ++seed) {
    EXPECT_TRUE(owned[seed].OutputBytes() == ReferenceBytes(Small(seed)));
    EXPECT_EQ((*stats)[seed].kernel, (*stats)[0].kernel) << "that of the run";
  }
  const std::vector<std::string> history = History();
  EXPECT_EQ(std::count_if(history.begin(), history.end(), IsKernel), 4) << "two at a time";
  EXPECT_LE(device_->device_bytes(), 26 << 10);
}

TEST_F(CudaBackendTest, RunsWaitForMemoryThatOthersHold) {
  CudaBackendOptions options = Options();
  options.device_memory_bytes = 16 << 10;  // one problem
  Start(options);
  std::vector<OwnedProblem> owned;
  for (uint64_t seed = 0; seed < 6; ++seed) owned.push_back(Materialise(Small(seed)));
  std::vector<std::unique_ptr<Flight>> flights;
  flights.reserve(owned.size());
  for (const OwnedProblem& problem : owned) {
    flights.push_back(std::make_unique<Flight>(*backend_, problem));
  }
  for (uint64_t seed = 0; seed < 6; ++seed) {
    EXPECT_TRUE(flights[seed]->Wait().ok()) << flights[seed]->Wait();
    EXPECT_TRUE(owned[seed].OutputBytes() == ReferenceBytes(Small(seed)));
  }
}

TEST_F(CudaBackendTest, WhatNeverFitsIsRefusedWithItsSizes) {
  CudaBackendOptions options = Options();
  options.device_memory_bytes = 8 << 10;
  Start(options);
  const OwnedProblem owned = Materialise(Small());
  const absl::Status refused = backend_->Admit(owned.problem());
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr("tensors 8448"), HasSubstr("workspace 4096"),
                    HasSubstr("the limit is 8192")));
  Flight flight(*backend_, owned);
  EXPECT_EQ(flight.Wait(), refused);
  EXPECT_TRUE(History().empty());
  EXPECT_TRUE(backend_->health().ok());
}

TEST_F(CudaBackendTest, AWorkspaceLargerThanItsBoundIsReservedAgain) {
  Start(Options(), 64 * kMiB, /*bound_bytes=*/256, /*workspace_bytes=*/4096);
  EXPECT_TRUE(OutputBytesOf(*backend_, Small()) == ReferenceBytes(Small()));
  EXPECT_EQ(backend_->usage().device_memory_used_bytes, 0);
}

TEST_F(CudaBackendTest, OptionsAreChecked) {
  const auto create = [&](const CudaBackendOptions& options) {
    return CudaBackend::Create(
        options, device_, std::make_unique<FakePlanner>(device_.get()),
        std::make_shared<PinnedPool>(std::vector<std::shared_ptr<DeviceApi>>{device_}, kMiB), {});
  };
  EXPECT_THAT(std::string(create({.slots = 0}).status().message()),
              HasSubstr("cuda_slots is 0; accepted: 1 to 16"));
  EXPECT_EQ(create({.slots = 17}).status().code(), absl::StatusCode::kInvalidArgument);
  device_->FailNext(Call::kUse, kInvalidConfiguration, /*sticky=*/false);
  EXPECT_EQ(create({}).status().code(), absl::StatusCode::kInternal);
}

// An error from which the device recovers costs its run, wherever it strikes, and nothing else.
TEST_F(CudaBackendTest, AFailedCallFailsItsRunOnly) {
  Start();
  int failures = 0;
  for (const Call call : {Call::kCopy, Call::kRecord, Call::kLaunch}) {
    for (int skip = 0; skip < 3; ++skip) {
      if (call == Call::kLaunch && skip > 0) continue;
      device_->FailNext(call, kInvalidConfiguration, /*sticky=*/false, skip);
      const OwnedProblem owned = Materialise(skip == 2 ? Backward(Small()) : Small());
      Flight flight(*backend_, owned);
      EXPECT_EQ(flight.Wait().code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(flight.Wait().message()),
                  AllOf(HasSubstr("CUDA device 3"), HasSubstr("fakeError9")));
      ++failures;
      EXPECT_TRUE(backend_->health().ok());
      EXPECT_TRUE(OutputBytesOf(*backend_, Small()) == ReferenceBytes(Small()));
    }
  }
  EXPECT_THAT(backend_->usage().errors, ElementsAre(Pair("fakeError9", failures)));
  EXPECT_EQ(backend_->usage().device_memory_used_bytes, 0);
  EXPECT_EQ(backend_->usage().pinned_used_bytes, 0);
}

// No run returns while the device still reads or writes its memory: here copies are on their way
// when a later call fails.
TEST_F(CudaBackendTest, AFailedRunLetsGoOfItsMemoryFirst) {
  Start();
  device_->HoldKernels();
  device_->FailNext(Call::kRecord, kInvalidConfiguration, /*sticky=*/false, 2);  // after the launch
  auto owned = std::make_unique<OwnedProblem>(Materialise(Small()));
  auto flight = std::make_unique<Flight>(*backend_, *owned);
  ASSERT_TRUE(device_->WaitForHistory("upload", 2));
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(flight->done());
  device_->ReleaseKernels();
  EXPECT_FALSE(flight->Wait().ok());
}

// A sticky error fails what runs and all that comes, at once; nothing hangs, and the backend goes
// as always.
TEST_F(CudaBackendTest, ABrokenDeviceFailsEverythingFromThenOn) {
  for (const Call call : {Call::kKernel, Call::kCopy, Call::kRecord, Call::kLaunch}) {
    const auto device = std::make_shared<FakeDevice>();
    const auto pool =
        std::make_shared<PinnedPool>(std::vector<std::shared_ptr<DeviceApi>>{device}, 8 * kMiB);
    auto backend =
        CudaBackend::Create(Options(), device, std::make_unique<FakePlanner>(device.get()), pool,
                            {.device_label = "3"});
    ASSERT_TRUE(backend.ok());
    EXPECT_TRUE(OutputBytesOf(**backend, Small()) == ReferenceBytes(Small()));
    device->HoldKernels();
    std::vector<OwnedProblem> owned;
    for (uint64_t seed = 0; seed < 8; ++seed) owned.push_back(Materialise(Small(seed)));
    std::vector<std::unique_ptr<Flight>> flights;
    flights.reserve(owned.size());
    device->FailNext(call, kIllegalAddress, /*sticky=*/true, call == Call::kCopy ? 4 : 1);
    for (const OwnedProblem& problem : owned) {
      flights.push_back(std::make_unique<Flight>(**backend, problem));
    }
    device->ReleaseKernels();
    int failed = 0;
    for (const auto& flight : flights) {
      const absl::Status status = flight->Wait();
      if (status.ok()) continue;
      ++failed;
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(status.message()), HasSubstr("fakeError700"));
    }
    EXPECT_GE(failed, 5);
    EXPECT_EQ((*backend)->health().code(), absl::StatusCode::kInternal);
    const size_t operations = device->history().size();
    Flight late(**backend, owned[0]);
    EXPECT_EQ(late.Wait(), (*backend)->health());
    EXPECT_EQ(device->history().size(), operations) << "the device is not asked any more";
    EXPECT_FALSE((*backend)->usage().errors.empty());
    (*backend).reset();
  }
}

TEST_F(CudaBackendTest, DeviceMemoryThatIsGoneIsNoBrokenDevice) {
  Start();
  // Each attempt asks for a region, then for what is needed: who brings the run, the worker in
  // haste, and the worker that may wait.
  for (int n = 0; n < 10; ++n) {
    device_->FailNext(Call::kAllocateDevice, kOutOfMemory, /*sticky=*/false);
  }
  const OwnedProblem owned = Materialise(Small());
  {
    Flight flight(*backend_, owned);
    EXPECT_EQ(flight.Wait().code(), absl::StatusCode::kResourceExhausted);
  }
  EXPECT_TRUE(backend_->health().ok());
  EXPECT_TRUE(OutputBytesOf(*backend_, Small()) == ReferenceBytes(Small()));
}

TEST_F(CudaBackendTest, DestructionWaitsForRuns) {
  Start();
  std::vector<OwnedProblem> owned;
  for (uint64_t seed = 0; seed < 8; ++seed) owned.push_back(Materialise(Small(seed)));
  std::vector<std::unique_ptr<Flight>> flights;
  flights.reserve(owned.size());
  for (const OwnedProblem& problem : owned) {
    flights.push_back(std::make_unique<Flight>(*backend_, problem));
  }
  backend_.reset();
  for (const auto& flight : flights) {
    EXPECT_TRUE(flight->done());
    EXPECT_TRUE(flight->Wait().ok());
  }
}

// Many threads, mixed shapes, pinned and pageable, runs in flight: each its own answer.
TEST_F(CudaBackendTest, Stress) {
  CudaBackendOptions options = Options();
  options.device_memory_bytes = kMiB;
  options.direct_copy_bytes = 4096;
  Start(options);
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < 6; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t n = 0; n < 12; ++n) {
        AttentionCase c = Small(100 * thread + n);
        if (n % 3 == 1) c = Backward(c);
        c.sequences = {{.q_len = 1 + static_cast<int64_t>((7 * n + thread) % 60), .kv_len = 60}};
        const std::string expected = ReferenceBytes(c);
        const OwnedProblem owned = Materialise(c);
        if (n % 2 == 0) {
          EXPECT_TRUE(OutputBytesOf(*backend_, c) == expected) << Describe(c);
        } else {
          const PinnedProblem pinned(backend_->host_allocator(), owned);
          Flight flight(*backend_, {pinned.problem(), owned.problem()});
          EXPECT_TRUE(flight.Wait().ok()) << flight.Wait();
          EXPECT_TRUE(pinned.OutputBytes() == expected) << Describe(c);
          EXPECT_TRUE(owned.OutputBytes() == expected) << Describe(c);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(backend_->usage().pinned_used_bytes, 0);
  EXPECT_EQ(backend_->usage().device_memory_used_bytes, 0);
}

}  // namespace
}  // namespace flashbias::cuda
