// The golden vectors through the backend under test.
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/support/golden.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::GoldenCase;

class BackendGoldenTest : public ::testing::Test {
 protected:
  // Every vector, its inputs rounded to each type that is tested.
  void SetUp() override {
    for (const DType dtype : SharpestDTypes()) {
      absl::StatusOr<std::vector<GoldenCase>> cases = support::LoadGoldenCases();
      ASSERT_TRUE(cases.ok()) << cases.status();
      for (GoldenCase& golden : *cases) {
        if (dtype != DType::kFloat32) golden.owned = golden.owned.RoundedTo(dtype);
        cases_.push_back(std::move(golden));
      }
    }
    ASSERT_FALSE(cases_.empty());
  }

  // Against the vector and, where rounding stands between them, against the reference.
  static void ExpectRight(const GoldenCase& golden) {
    EXPECT_TRUE(support::MatchesGolden(golden));
    EXPECT_TRUE(MatchesOracle(golden.owned)) << golden.name;
  }

  std::vector<GoldenCase> cases_;
};

TEST_F(BackendGoldenTest, EveryVector) {
  for (GoldenCase& golden : cases_) {
    for (const float eps : {kDefaultEps, 0.0f}) {
      SCOPED_TRACE(::testing::Message() << Name(golden.owned.problem().dtype) << " eps " << eps);
      golden.owned.mutable_problem().eps = eps;
      ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), golden.owned).ok());
      ExpectRight(golden);
    }
  }
}

TEST_F(BackendGoldenTest, AllVectorsInOneBatch) {
  std::vector<AttentionProblem> batch;
  for (const GoldenCase& golden : cases_) batch.push_back(golden.owned.problem());
  ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), batch).ok());
  for (const GoldenCase& golden : cases_) ExpectRight(golden);
}

TEST(BackendRun, NoProblemsIsDoneAtOnce) {
  EXPECT_TRUE(support::RunAndWait(BackendUnderTest(), {}).ok());
}

}  // namespace
}  // namespace flashbias
