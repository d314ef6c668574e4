// The golden vectors through the backend that the factory makes.
#include "gtest/gtest.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/support/golden.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::GoldenCase;

TEST(BackendGolden, EveryVector) {
  absl::StatusOr<std::vector<GoldenCase>> cases = support::LoadGoldenCases();
  ASSERT_TRUE(cases.ok()) << cases.status();
  for (GoldenCase& golden : *cases) {
    for (const float eps : {kDefaultEps, 0.0f}) {
      golden.owned.mutable_problem().eps = eps;
      ASSERT_TRUE(support::RunAndWait(SharedCpuBackend(), golden.owned).ok());
      EXPECT_TRUE(support::MatchesGolden(golden)) << "eps " << eps;
    }
  }
}

TEST(BackendGolden, AllVectorsInOneBatch) {
  absl::StatusOr<std::vector<GoldenCase>> cases = support::LoadGoldenCases();
  ASSERT_TRUE(cases.ok()) << cases.status();
  std::vector<AttentionProblem> batch;
  for (const GoldenCase& golden : *cases) batch.push_back(golden.owned.problem());
  ASSERT_TRUE(support::RunAndWait(SharedCpuBackend(), batch).ok());
  for (const GoldenCase& golden : *cases) EXPECT_TRUE(support::MatchesGolden(golden));
}

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

TEST(BackendRun, NoProblemsIsDoneAtOnce) {
  EXPECT_TRUE(support::RunAndWait(SharedCpuBackend(), {}).ok());
}

}  // namespace
}  // namespace flashbias
