// The backend that the tests of this folder judge, and what the tests ask it for.
//
// Each program links backend_under_test_cpu.cc or backend_under_test_cuda.cc. A GPU serves no fp32:
// there, cases in fp32 are rounded to 16 bits first and judged by the limits of that type.
//
// Thread-safety: pure functions.
#ifndef FLASHBIAS_TESTS_KERNELS_BACKEND_UNDER_TEST_H_
#define FLASHBIAS_TESTS_KERNELS_BACKEND_UNDER_TEST_H_

#include <vector>

#include "gtest/gtest.h"
#include "kernels/attention_backend.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/owned_problem.h"

namespace flashbias {

// One that all tests of a program share; ends the program when there is none.
AttentionBackend& BackendUnderTest();

// fp32 where it is served, since its limits are the sharpest; else everything that is served.
std::vector<DType> SharpestDTypes();

// `dtype` where it is served, else fp16.
DType ServedDType(DType dtype);

// The same with a dtype that is served.
support::AttentionCase Served(support::AttentionCase test_case);
support::OwnedProblem Served(support::OwnedProblem owned);

// support::MatchesReference within the limits of the backend under test.
::testing::AssertionResult MatchesOracle(const support::OwnedProblem& owned, double slack = 0,
                                         int64_t budget = support::kDefaultBudget);

// What the backend under test may add to |lse - exact|.
double LseAllowance(DType dtype);

}  // namespace flashbias

#endif  // FLASHBIAS_TESTS_KERNELS_BACKEND_UNDER_TEST_H_
