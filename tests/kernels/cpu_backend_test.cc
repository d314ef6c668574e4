// What only the CPU backend has: the factory that makes it, and its threads.
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernels/new_cpu_backend.h"
#include "tests/support/attention_case.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using ::testing::HasSubstr;

TEST(BackendFactory, RefusesWhatItCannotMake) {
  EXPECT_EQ(CreateBackend({.kind = "abacus"}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateBackend({.kind = "cpu", .cpu_threads = -1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(BackendFactory, OptionsAreNamedInRefusals) {
  const auto error = [](const BackendOptions& options) {
    const auto backends = CreateBackends(options);
    EXPECT_EQ(backends.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(backends.status().message());
  };
  EXPECT_THAT(error({.kind = "abacus"}),
              HasSubstr("backend is 'abacus'; this build accepts 'auto'"));
  EXPECT_THAT(error({.device_memory_bytes = -1}),
              HasSubstr("device_memory_bytes is -1; accepted: 0 or more"));
  EXPECT_THAT(error({.pinned_memory_bytes = 5}),
              HasSubstr("pinned_memory_bytes is 5; accepted: 16777216 or more"));
}

// On every machine: with a GPU, without one, and in builds that know none.
TEST(BackendFactory, AutoFindsSomething) {
  const auto backends = CreateBackends({.kind = "auto", .cpu_threads = 1});
  ASSERT_TRUE(backends.ok()) << backends.status();
  ASSERT_FALSE(backends->empty());
  for (const auto& backend : *backends) {
    EXPECT_EQ(backend->info().name, backends->front()->info().name);
    EXPECT_EQ(&backend->host_allocator(), &backends->front()->host_allocator());
    EXPECT_TRUE(backend->health().ok());
  }
  const auto cuda = CreateBackends({.kind = "cuda"});
  EXPECT_EQ(cuda.ok(), backends->front()->info().name == "cuda") << cuda.status();
}

TEST(CpuBackend, SaysWhatItsKernelsTook) {
  const std::unique_ptr<AttentionBackend> backend = NewCpuBackend(1);
  support::OwnedProblem owned = support::Materialise(support::BigRandomCase(1));
  const auto stats = support::RunAndWait(*backend, owned);
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_GT(stats->kernel, absl::ZeroDuration());
  EXPECT_EQ(stats->upload, absl::ZeroDuration());
  EXPECT_EQ(stats->download, absl::ZeroDuration());
}

TEST(BackendFactory, InfoNamesWhatIsServed) {
  const std::unique_ptr<AttentionBackend> backend = NewCpuBackend(1);
  EXPECT_EQ(backend->info().name, "cpu");
  EXPECT_FALSE(backend->info().devices.empty());
  EXPECT_EQ(backend->info().dtypes.size(), 3u);
  EXPECT_EQ(backend->info().max_head_dim, kMaxHeadDim);
  EXPECT_EQ(backend->info().max_rank, kMaxRank);
  EXPECT_GE(backend->info().max_concurrent_runs, 1);
}

TEST(CpuBackend, RefusesGradientsThatTakeTooMuchScratchMemory) {
  const std::unique_ptr<AttentionBackend> backend = NewCpuBackend(1);
  float gradient = 0;
  AttentionProblem problem;
  problem.direction = Direction::kBackward;
  problem.num_q_heads = problem.num_kv_heads = 1000;
  problem.head_dim = 1;
  problem.total_q = problem.total_kv = 100'000;
  problem.bias_kind = BiasKind::kLowRank;
  problem.low_rank.rank = kMaxRank;
  problem.low_rank.phi_q_heads = problem.low_rank.phi_k_heads = 1;
  problem.gradients.dphi_q = problem.gradients.dphi_k = &gradient;
  const absl::Status status = backend->Admit(problem);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("100000 rows of queries"));
  problem.gradients.dphi_q = problem.gradients.dphi_k = nullptr;
  EXPECT_TRUE(backend->Admit(problem).ok());
}

TEST(CpuThreads, TheirNumberNeverChangesAnAnswer) {
  const std::unique_ptr<AttentionBackend> one = NewCpuBackend(1);
  const std::unique_ptr<AttentionBackend> two = NewCpuBackend(2);
  const std::unique_ptr<AttentionBackend> five = NewCpuBackend(5);
  for (uint64_t seed = 0; seed < 24; ++seed) {
    AttentionCase c = support::BigRandomCase(seed);
    if (seed % 2 == 0) c.direction = Direction::kBackward;
    const std::string expected = OutputBytesOf(*one, c);
    EXPECT_TRUE(OutputBytesOf(*two, c) == expected) << Describe(c);
    EXPECT_TRUE(OutputBytesOf(*five, c) == expected) << Describe(c);
  }
}

}  // namespace
}  // namespace flashbias
