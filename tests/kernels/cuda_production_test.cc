// What only the production CUDA backend has, on a real device: slots, recycled memory, phases, many
// callers at once. What a device that fails does is cuda_backend_test's.
#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend_factory.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/support/arriving_problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/pinned_problem.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::ArrivingProblem;
using support::AttentionCase;
using support::Describe;
using support::Materialise;
using support::OwnedProblem;
using support::PinnedProblem;
using ::testing::HasSubstr;

AttentionCase Case(int64_t length, uint64_t seed = 1) {
  AttentionCase c;
  c.dtype = DType::kFloat16;
  c.num_q_heads = c.num_kv_heads = 8;
  c.head_dim = 64;
  c.sequences = {{.q_len = length, .kv_len = length}};
  c.seed = seed;
  return c;
}

// Small: its o and lse are the reference's.
AttentionCase BackwardCase(uint64_t seed) {
  AttentionCase c = support::RandomCase(seed);
  c.direction = Direction::kBackward;
  return Served(c);
}

absl::StatusOr<ProblemStats> RunPinned(const PinnedProblem& pinned) {
  const auto stats =
      support::RunAndWait(BackendUnderTest(), absl::MakeConstSpan(&pinned.problem(), 1));
  if (!stats.ok()) return stats.status();
  return stats->front();
}

TEST(CudaProduction, WhereTensorsLieChangesNoBit) {
  for (uint64_t seed = 0; seed < 36; ++seed) {
    const AttentionCase c =
        seed % 3 == 1 ? BackwardCase(seed) : Served(support::BigRandomCase(seed));
    const OwnedProblem owned = Materialise(c);
    const PinnedProblem pinned(BackendUnderTest().host_allocator(), owned);
    const absl::StatusOr<ProblemStats> stats = RunPinned(pinned);
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_TRUE(pinned.OutputBytes() == OutputBytesOf(BackendUnderTest(), c)) << Describe(c);
  }
}

// As streamed requests come: in chunks, a part of the callers leave.
TEST(CudaProduction, InputsThatArriveByAndByChangeNoBit) {
  std::vector<AttentionCase> cases;
  std::vector<std::string> expected;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    cases.push_back(seed % 2 == 0   ? Case(2000 + 700 * static_cast<int64_t>(seed), seed)
                    : seed % 4 == 1 ? BackwardCase(seed)
                                    : Served(support::BigRandomCase(seed)));
    cases.back().byte_offset = 0;
    expected.push_back(OutputBytesOf(BackendUnderTest(), cases.back()));
  }
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < 6; ++thread) {
    threads.emplace_back([&, thread] {
      for (size_t n = 0; n < 24; ++n) {
        const size_t chosen = (5 * thread + n) % cases.size();
        ArrivingProblem problem(BackendUnderTest(), cases[chosen]);
        problem.Send(0.6, size_t{100000} * (1 + n));
        if (n % 8 == 7) continue;
        problem.Send(1, size_t{100000} * (1 + n));
        const auto stats =
            support::RunAndWait(BackendUnderTest(), absl::MakeConstSpan(&problem.problem(), 1));
        ASSERT_TRUE(stats.ok()) << stats.status();
        EXPECT_TRUE(problem.OutputBytes() == expected[chosen]) << Describe(cases[chosen]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const BackendUsage usage = BackendUnderTest().usage();
  EXPECT_EQ(usage.device_memory_used_bytes, 0);
  EXPECT_EQ(usage.pinned_used_bytes, 0);
  EXPECT_THAT(usage.errors, ::testing::IsEmpty());
}

// 200 MB of inputs: once they have arrived, a run finds them on the device.
TEST(CudaProduction, AnUploadAheadLeavesTheRunLittleToUpload) {
  AttentionCase c = Case(65536);
  c.bias = BiasKind::kAlibi;
  absl::Duration ahead = absl::InfiniteDuration();
  absl::Duration with_the_run = absl::InfiniteDuration();
  ArrivingProblem arriving(BackendUnderTest(), c);
  ASSERT_TRUE(arriving.has_upload());
  arriving.Send(1, size_t{1} << 20);
  const auto problem = absl::MakeConstSpan(&arriving.problem(), 1);
  for (int n = 0; n < 3; ++n) {
    const auto stats = support::RunAndWait(BackendUnderTest(), problem);
    ASSERT_TRUE(stats.ok()) << stats.status();
    ahead = std::min(ahead, stats->front().upload);
  }
  arriving.Cancel();
  for (int n = 0; n < 3; ++n) {
    const auto stats = support::RunAndWait(BackendUnderTest(), problem);
    ASSERT_TRUE(stats.ok()) << stats.status();
    with_the_run = std::min(with_the_run, stats->front().upload);
  }
  RecordProperty("ahead", absl::FormatDuration(ahead));
  RecordProperty("with_the_run", absl::FormatDuration(with_the_run));
  EXPECT_LT(2 * ahead, with_the_run);
}

// Many threads, mixed shapes and groups, runs in flight: each answer is, bit by bit, that of the
// same problem alone.
TEST(CudaProduction, ManyCallersGetTheirOwnAnswers) {
  constexpr uint64_t kThreads = 16;
  constexpr uint64_t kCases = 48;
  std::vector<AttentionCase> cases;
  std::vector<std::string> expected;
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    cases.push_back(seed % 3 == 1 ? BackwardCase(seed) : Served(support::BigRandomCase(seed)));
    expected.push_back(OutputBytesOf(BackendUnderTest(), cases.back()));
  }
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t round = 0; round < 30; ++round) {
        // One to seven problems, of any groups.
        std::vector<uint64_t> chosen;
        for (uint64_t n = 0; n <= (thread + round) % 7; ++n) {
          chosen.push_back((31 * thread + 17 * round + 5 * n) % kCases);
        }
        std::vector<OwnedProblem> owned;
        std::vector<AttentionProblem> batch;
        for (const uint64_t n : chosen) {
          owned.push_back(Materialise(cases[n]));
          batch.push_back(owned.back().problem());
        }
        const auto stats = support::RunAndWait(BackendUnderTest(), batch);
        ASSERT_TRUE(stats.ok()) << stats.status();
        for (size_t n = 0; n < chosen.size(); ++n) {
          EXPECT_EQ(owned[n].CheckOutputs(), "");
          EXPECT_TRUE(owned[n].OutputBytes() == expected[chosen[n]]) << Describe(cases[chosen[n]]);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const BackendUsage usage = BackendUnderTest().usage();
  EXPECT_EQ(usage.device_memory_used_bytes, 0);
  EXPECT_EQ(usage.pinned_used_bytes, 0);
  EXPECT_THAT(usage.errors, ::testing::IsEmpty());
  EXPECT_TRUE(BackendUnderTest().health().ok());
}

TEST(CudaProduction, OnceWarmNothingIsTakenFromDeviceOrSystem) {
  const AttentionCase c = Case(2000);
  for (int n = 0; n < 4; ++n) OutputBytesOf(BackendUnderTest(), c);
  const BackendUsage warm = BackendUnderTest().usage();
  for (int n = 0; n < 20; ++n) OutputBytesOf(BackendUnderTest(), c);
  EXPECT_EQ(BackendUnderTest().usage().device_memory_size_bytes, warm.device_memory_size_bytes);
  EXPECT_EQ(BackendUnderTest().usage().pinned_size_bytes, warm.pinned_size_bytes);
}

// Upload, kernel and download are what a run takes; what is left is handing over between threads.
TEST(CudaProduction, PhasesAddUpToTheTotal) {
  AttentionCase c = Case(16384);
  c.num_q_heads = c.num_kv_heads = 32;
  c.eps = 0;
  const OwnedProblem owned = Materialise(c);
  const PinnedProblem pinned(BackendUnderTest().host_allocator(), owned);
  OwnedProblem pageable = Materialise(c);
  for (const bool direct : {true, false}) {
    double best = 0;
    for (int attempt = 0; attempt < 5; ++attempt) {
      const absl::Time start = absl::Now();
      const absl::StatusOr<ProblemStats> stats =
          direct ? RunPinned(pinned) : [&]() -> absl::StatusOr<ProblemStats> {
        const auto all =
            support::RunAndWait(BackendUnderTest(), absl::MakeConstSpan(&pageable.problem(), 1));
        if (!all.ok()) return all.status();
        return all->front();
      }();
      const absl::Duration total = absl::Now() - start;
      ASSERT_TRUE(stats.ok()) << stats.status();
      EXPECT_GT(stats->upload, absl::ZeroDuration());
      EXPECT_GT(stats->kernel, absl::ZeroDuration());
      EXPECT_GT(stats->download, absl::ZeroDuration());
      const absl::Duration sum = stats->upload + stats->kernel + stats->download;
      EXPECT_LE(sum, total + absl::Microseconds(100));
      best = std::max(best, absl::FDivDuration(sum, total));
      RecordProperty(direct ? "pinned" : "pageable", absl::FormatDuration(total));
    }
    EXPECT_GE(best, 0.9) << (direct ? "pinned" : "pageable");
  }
}

TEST(CudaProduction, Float32IsRefused) {
  AttentionCase c = Case(16);
  c.dtype = DType::kFloat32;
  OwnedProblem owned = Materialise(c);
  const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
  EXPECT_EQ(stats.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(BackendUnderTest().health().ok());
}

TEST(CudaProduction, WhatNeverFitsIsRefusedAndWhatFitsInPartsIsNot) {
  auto backends = CreateBackends(
      {.kind = "cuda", .cuda_devices = "0", .device_memory_bytes = int64_t{24} << 20});
  ASSERT_TRUE(backends.ok()) << backends.status();
  AttentionBackend& backend = *backends->front();
  const OwnedProblem large = Materialise(Case(8192));  // 32 MiB of tensors
  EXPECT_EQ(backend.Admit(large.problem()).code(), absl::StatusCode::kResourceExhausted);
  std::vector<OwnedProblem> owned;
  std::vector<AttentionProblem> batch;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    owned.push_back(Materialise(Case(1500, seed)));  // 6 MiB each
    batch.push_back(owned.back().problem());
  }
  const auto stats = support::RunAndWait(backend, batch);
  ASSERT_TRUE(stats.ok()) << stats.status();
  for (const OwnedProblem& problem : owned) {
    EXPECT_TRUE(MatchesOracle(problem, 0, support::kDefaultBudget / 10));
  }
  EXPECT_LE(backend.usage().device_memory_size_bytes, int64_t{24} << 20);
}

TEST(CudaProduction, DevicesAreChosenByFlag) {
  const absl::Status missing = CreateBackends({.kind = "cuda", .cuda_devices = "0,99"}).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("cuda_devices is 0,99; accepted: "));
  const absl::Status twice = CreateBackends({.kind = "cuda", .cuda_devices = "0,0"}).status();
  EXPECT_EQ(twice.code(), absl::StatusCode::kInvalidArgument);
  const auto all = CreateBackends({.kind = "auto"});
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->front()->info().name, "cuda");
  for (const auto& backend : *all) {
    OwnedProblem owned = Materialise(Case(300));
    ASSERT_TRUE(support::RunAndWait(*backend, owned).ok());
    EXPECT_TRUE(MatchesOracle(owned));
  }
}

}  // namespace
}  // namespace flashbias
