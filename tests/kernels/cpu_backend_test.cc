// What only the CPU backend has: the factory that makes it, and its threads.
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "tests/kernels/new_cpu_backend.h"
#include "tests/support/attention_case.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::AttentionCase;

TEST(BackendFactory, RefusesWhatItCannotMake) {
  EXPECT_EQ(CreateBackend({.kind = "abacus"}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateBackend({.kind = "cpu", .cpu_threads = -1}).status().code(),
            absl::StatusCode::kInvalidArgument);
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

TEST(CpuThreads, TheirNumberNeverChangesAnAnswer) {
  const std::unique_ptr<AttentionBackend> one = NewCpuBackend(1);
  const std::unique_ptr<AttentionBackend> two = NewCpuBackend(2);
  const std::unique_ptr<AttentionBackend> five = NewCpuBackend(5);
  for (uint64_t seed = 0; seed < 24; ++seed) {
    const AttentionCase c = support::BigRandomCase(seed);
    const std::string expected = OutputBytesOf(*one, c);
    EXPECT_TRUE(OutputBytesOf(*two, c) == expected) << Describe(c);
    EXPECT_TRUE(OutputBytesOf(*five, c) == expected) << Describe(c);
  }
}

}  // namespace
}  // namespace flashbias
