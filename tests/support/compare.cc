#include "tests/support/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/attention_case.h"

namespace flashbias::support {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLseLimit = 1e-6;

int64_t RowCost(const AttentionProblem& problem, const Sequence& sequence) {
  const int rank = problem.bias_kind == BiasKind::kLowRank ? problem.low_rank.rank : 0;
  return (sequence.kv_len + 1) * (2 * problem.head_dim + rank + 8);
}

}  // namespace

void VisitRows(const AttentionProblem& problem, int64_t budget,
               const std::function<void(int64_t, int64_t, int)>& visit) {
  int64_t total = 0;
  for (const Sequence& s : problem.sequences) {
    total += s.q_len * problem.num_q_heads * RowCost(problem, s);
  }
  const auto sequences = static_cast<int64_t>(problem.sequences.size());
  for (int64_t n = 0; n < sequences; ++n) {
    const Sequence& s = problem.sequences[n];
    if (s.q_len == 0) continue;
    if (total <= budget) {
      for (int64_t row = 0; row < s.q_len; ++row) {
        for (int head = 0; head < problem.num_q_heads; ++head) visit(n, row, head);
      }
      continue;
    }
    Random random(static_cast<uint64_t>(n) + 1);
    const int64_t samples = std::max<int64_t>(8, budget / sequences / RowCost(problem, s));
    for (int64_t sample = 0; sample < samples; ++sample) {
      const int head = static_cast<int>(sample % problem.num_q_heads);
      int64_t row = random.Below(s.q_len);
      if (sample < 2) row = sample * (s.q_len - 1);
      visit(n, row, head);
    }
  }
}

double OutputElement(const AttentionProblem& problem, int64_t row, int head, int d) {
  const int64_t index = (row * problem.num_q_heads + head) * problem.head_dim + d;
  return static_cast<double>(LoadElement(problem.dtype, problem.o, index));
}

double MaxAbsV(const AttentionProblem& problem) {
  double max = 0;
  const int64_t elements = problem.total_kv * problem.num_kv_heads * problem.head_dim;
  for (int64_t n = 0; n < elements; ++n) {
    max = std::max(max, std::fabs(static_cast<double>(LoadElement(problem.dtype, problem.v, n))));
  }
  return max;
}

Comparison CompareWithReference(const AttentionProblem& problem, int64_t budget,
                                double lse_allowance) {
  Comparison result;
  double difference = 0;
  double norm = 0;
  double fourth_powers = 0;
  int64_t elements = 0;
  VisitRows(problem, budget, [&](int64_t sequence, int64_t row, int head) {
    const ReferenceRow expected = ReferenceAttentionRow(problem, sequence, row, head);
    const int64_t q_row = problem.sequences[sequence].q_begin + row;
    ++result.rows;
    for (int d = 0; d < problem.head_dim; ++d) {
      const double error = OutputElement(problem, q_row, head, d) - expected.o[d];
      difference += error * error;
      const double square = expected.o[d] * expected.o[d];
      norm += square;
      fourth_powers += square * square;
      ++elements;
    }
    if (problem.lse == nullptr) return;
    const auto lse = static_cast<double>(problem.lse[q_row * problem.num_q_heads + head]);
    if (lse == expected.lse) return;  // both -infinity
    const double beyond = std::fabs(lse - expected.lse) - lse_allowance;
    const double error = beyond <= 0 ? 0 : beyond / (1 + std::fabs(expected.lse));
    // A NaN must not slip through max().
    result.lse_error = error <= kInfinity && std::isfinite(expected.lse)
                           ? std::max(result.lse_error, error)
                           : kInfinity;
  });
  if (difference != 0 || norm != 0) result.relative_error = std::sqrt(difference / norm);
  if (!(result.relative_error <= kInfinity)) result.relative_error = kInfinity;
  if (fourth_powers > 0) result.effective_elements = norm * norm / fourth_powers;
  if (problem.eps > kDefaultEps && norm > 0) {
    result.allowed_by_eps = 2 * static_cast<double>(problem.eps) * MaxAbsV(problem) *
                            std::sqrt(static_cast<double>(elements) / norm);
  }
  return result;
}

double RelativeErrorLimit(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 3e-4;
    case DType::kBFloat16:
      return 3e-3;
    case DType::kFloat32:
      return 2e-6;
  }
  return 0;
}

Allowance AllowanceOf(const BackendInfo& backend, DType dtype) {
  if (backend.name != "cuda") return {};
  return {.lse = dtype == DType::kFloat16 ? 6e-4 : 5e-3, .few_elements = 2};
}

::testing::AssertionResult MatchesReference(const OwnedProblem& owned, double slack, int64_t budget,
                                            const Allowance& allowance) {
  const AttentionProblem& problem = owned.problem();
  const std::string damage = owned.CheckOutputs();
  if (!damage.empty()) return ::testing::AssertionFailure() << damage;
  const Comparison comparison = CompareWithReference(problem, budget, allowance.lse);
  const double few =
      allowance.few_elements / std::sqrt(std::max(1.0, comparison.effective_elements));
  const double limit =
      RelativeErrorLimit(problem.dtype) * (1 + few) + slack + comparison.allowed_by_eps;
  if (!(comparison.relative_error <= limit)) {
    return ::testing::AssertionFailure() << "relative error " << comparison.relative_error
                                         << " over " << comparison.rows << " rows, limit " << limit;
  }
  const double eps = static_cast<double>(problem.eps);
  const double lse_limit = kLseLimit + slack + (eps > kDefaultEps ? 2 * eps : 0);
  if (!(comparison.lse_error <= lse_limit)) {
    return ::testing::AssertionFailure() << "lse error " << comparison.lse_error << " over "
                                         << comparison.rows << " rows, limit " << lse_limit;
  }
  return ::testing::AssertionSuccess();
}

}  // namespace flashbias::support
