// Every instruction set that this machine can run computes the same function.
#include <hwy/highway.h>

#include <cstdint>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernels/new_cpu_backend.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/compare_gradients.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

class InstructionSetsTest : public ::testing::Test {
 protected:
  // Makes Highway choose `target` until the end of the test.
  void Choose(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
  }
  void TearDown() override { Choose(0); }
};

TEST_F(InstructionSetsTest, AllMatchTheReference) {
  const int64_t supported = hwy::SupportedTargets();
  int tried = 0;
  for (int64_t target = 1; target != 0 && target <= HWY_SCALAR; target <<= 1) {
    if ((supported & target) == 0) continue;
    Choose(target);
    const auto backend = NewCpuBackend(2);
    SCOPED_TRACE(backend->info().devices.front());
    for (uint64_t seed = 1000; seed < (support::kSlowBuild ? 1020 : 1060); ++seed) {
      const support::AttentionCase c = support::RandomCase(seed);
      support::OwnedProblem owned = support::Materialise(c);
      ASSERT_TRUE(support::RunAndWait(*backend, owned).ok());
      EXPECT_TRUE(support::MatchesReference(owned, 0, support::kDefaultBudget / 20))
          << support::Describe(c);
    }
    for (uint64_t seed = 1000; seed < (support::kSlowBuild ? 1010 : 1030); ++seed) {
      support::AttentionCase c = support::RandomCase(seed);
      c.direction = Direction::kBackward;
      support::OwnedProblem owned = support::Materialise(c);
      ASSERT_TRUE(support::RunAndWait(*backend, owned).ok());
      EXPECT_TRUE(support::MatchesReferenceGradients(owned, 0, support::kGradientBudget / 20))
          << support::Describe(c);
    }
    ++tried;
  }
  EXPECT_GE(tried, 1);
}

}  // namespace
}  // namespace flashbias
