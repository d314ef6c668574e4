// Comparison of a backward problem's gradients with the fp64 reference.
//
// A gradient is a sum that may cancel: where a row sees one key, P (dP - delta) is 0 and what is
// left is rounding. So the limit is a share of the gradient's norm, or of the norm that its terms
// have before they cancel, whichever is larger.
//
// Thread-safety: pure functions; they use all cores.
#ifndef FLASHBIAS_TESTS_SUPPORT_COMPARE_GRADIENTS_H_
#define FLASHBIAS_TESTS_SUPPORT_COMPARE_GRADIENTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/attention_problem.h"
#include "tests/support/compare.h"
#include "tests/support/owned_problem.h"

namespace flashbias::support {

// In multiplications of the reference; about 50 ms of one core.
inline constexpr int64_t kGradientBudget = kSlowBuild ? 10'000'000 : 100'000'000;

// Of one gradient, or of one head of dslopes.
struct GradientError {
  std::string name;
  double error = 0;  // ||x - ref||
  double norm = 0;   // ||ref||
  double limit = 0;  // of error
};

// Each gradient that the problem wants. Of key/value heads (with the query heads that use them) as
// many as `budget` allows, at least one; factors that heads share only where that is all of them.
std::vector<GradientError> CompareGradients(const AttentionProblem& problem,
                                            int64_t budget = kGradientBudget, double slack = 0);

// What the service promises of ||x - ref|| / ||ref|| for N(0, 1) inputs: of dq, dk and dv 6e-4
// fp16, 5e-3 bf16, 2e-5 fp32; of dslopes, dphi_q and dphi_k 1e-3 fp16, 8e-3 bf16, 1e-4 fp32.
double GradientLimit(DType dtype);
double BiasGradientLimit(DType dtype);

// Every element written, guards intact, every gradient within its limit. `slack` is added to the
// relative limits. Allowed beyond them: what the rounding of lse and o, which the problem is given,
// and of subnormal results must cost, and what an eps above the default may drop.
::testing::AssertionResult MatchesReferenceGradients(const OwnedProblem& owned, double slack = 0,
                                                     int64_t budget = kGradientBudget);

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_COMPARE_GRADIENTS_H_
