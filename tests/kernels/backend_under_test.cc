#include "tests/kernels/backend_under_test.h"

#include <algorithm>
#include <utility>

namespace flashbias {
namespace {

bool IsServed(DType dtype) {
  const std::vector<DType>& dtypes = BackendUnderTest().info().dtypes;
  return std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end();
}

}  // namespace

std::vector<DType> SharpestDTypes() {
  if (IsServed(DType::kFloat32)) return {DType::kFloat32};
  return BackendUnderTest().info().dtypes;
}

DType ServedDType(DType dtype) { return IsServed(dtype) ? dtype : DType::kFloat16; }

support::AttentionCase Served(support::AttentionCase test_case) {
  test_case.dtype = ServedDType(test_case.dtype);
  return test_case;
}

support::OwnedProblem Served(support::OwnedProblem owned) {
  if (IsServed(owned.problem().dtype)) return owned;
  return owned.RoundedTo(ServedDType(owned.problem().dtype));
}

::testing::AssertionResult MatchesOracle(const support::OwnedProblem& owned, double slack,
                                         int64_t budget) {
  return support::MatchesReference(
      owned, slack, budget, support::AllowanceOf(BackendUnderTest().info(), owned.problem().dtype));
}

double LseAllowance(DType dtype) {
  return support::AllowanceOf(BackendUnderTest().info(), dtype).lse;
}

}  // namespace flashbias
