// Comparison of a problem's outputs with the fp64 reference.
//
// Thread-safety: pure functions.
#ifndef FLASHBIAS_TESTS_SUPPORT_COMPARE_H_
#define FLASHBIAS_TESTS_SUPPORT_COMPARE_H_

#include <cstdint>
#include <functional>

#include "gtest/gtest.h"
#include "kernels/attention_backend.h"
#include "kernels/attention_problem.h"
#include "kernels/reference/reference_attention.h"
#include "tests/support/owned_problem.h"

namespace flashbias::support {

// True in builds that are an order of magnitude slower, where long cases compare fewer rows.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSlowBuild = true;
#else
inline constexpr bool kSlowBuild = false;
#endif

// About 20 ms of reference in an optimised build.
inline constexpr int64_t kDefaultBudget = kSlowBuild ? 1'000'000 : 10'000'000;

// Calls `visit` for (sequence, row, head) triples: for all where that costs at most `budget`
// multiplications in the reference, else for the corners and a fixed pseudo-random choice.
void VisitRows(const AttentionProblem& problem, int64_t budget,
               const std::function<void(int64_t sequence, int64_t row, int head)>& visit);

struct Comparison {
  int64_t rows = 0;  // (row, head) pairs compared
  double relative_error =
      0;  // ||o - ref|| / ||ref|| over them; infinite when ref is 0 and o is not
  // (sum of ref^2)^2 / sum of ref^4: how many elements the error is an average over.
  double effective_elements = 0;
  double allowed_by_eps = 0;  // what 2 eps max|v| in every element adds to relative_error
  // max of |lse - ref| / (1 + |ref|), |lse - ref| less the allowance; infinite where only one is
  // -inf
  double lse_error = 0;
};

Comparison CompareWithReference(const AttentionProblem& problem, int64_t budget = kDefaultBudget,
                                double lse_allowance = 0);

// What the service promises for N(0, 1) inputs: 3e-4 fp16, 3e-3 bf16, 2e-6 fp32.
double RelativeErrorLimit(DType dtype);

// What a backend's arithmetic may add to the limits: nothing on the CPU. A GPU rounds the weights
// to the tensors' type before it multiplies them with v and before it sums them.
struct Allowance {
  double lse = 0;  // added to |lse - ref|: 6e-4 fp16, 5e-3 bf16
  // The limit of the relative error grows by this / sqrt(effective_elements): it was set for many
  // elements, over which rounding averages out.
  double few_elements = 0;
};
Allowance AllowanceOf(const BackendInfo& backend, DType dtype);

// Every element written, guards intact, relative error within the dtype's limit plus `slack`, lse
// within 1e-6 (1 + |lse|), both plus `allowance`. An eps above the default may add 2 eps max|v| to
// every element of o and 2 eps to lse.
::testing::AssertionResult MatchesReference(const OwnedProblem& owned, double slack = 0,
                                            int64_t budget = kDefaultBudget,
                                            const Allowance& allowance = {});

// Element (row, head, d) of o, as a double. `row` counts over all sequences.
double OutputElement(const AttentionProblem& problem, int64_t row, int head, int d);

double MaxAbsV(const AttentionProblem& problem);

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_COMPARE_H_
