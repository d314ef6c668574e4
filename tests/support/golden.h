// The golden vectors in tests/vectors, or in the folder that FLASHBIAS_VECTORS names: small cases
// of the formula, inputs fp32, results fp64, computed apart from this project. They settle sign,
// alignment and lse conventions.
//
// Thread-safety: pure functions.
#ifndef FLASHBIAS_TESTS_SUPPORT_GOLDEN_H_
#define FLASHBIAS_TESTS_SUPPORT_GOLDEN_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference_gradients.h"
#include "tests/support/owned_problem.h"

namespace flashbias::support {

struct GoldenCase {
  std::string name;
  OwnedProblem owned;       // fp32, lse wanted
  std::vector<double> o;    // [total_q, num_q_heads, head_dim]
  std::vector<double> lse;  // [total_q, num_q_heads]
};

// The same as a backward problem.
struct GoldenGradients {
  std::string name;
  OwnedProblem owned;  // fp32; o and lse are the vector's
  ReferenceGradients expected;
};

// Every case of index.json.
absl::StatusOr<std::vector<GoldenCase>> LoadGoldenCases();
absl::StatusOr<std::vector<GoldenGradients>> LoadGoldenGradients();

// The problem's o within a relative error of 2e-6, its lse within 1e-6 (1 + |lse|), -inf for -inf.
// Where `owned` was rounded to 16 bits, the limits grant what that does to the inputs: they settle
// conventions, and MatchesReference on the rounded inputs is the judge of the arithmetic.
::testing::AssertionResult MatchesGolden(const GoldenCase& golden);

// The same for gradients, each within a relative error of 2e-5 and 1e-5 in every element.
::testing::AssertionResult MatchesGolden(const GoldenGradients& golden);

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_GOLDEN_H_
