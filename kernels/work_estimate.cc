#include "kernels/work_estimate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/skip_table.h"

namespace flashbias {

double ExpectedReach(double slope, double log_eps) {
  if (!(slope > 0)) return std::numeric_limits<double>::infinity();
  return (12.0 - log_eps) / slope;
}

double ExpectedKeys(const AttentionProblem& problem, int64_t sequence, int head, int64_t q_row) {
  const KeyRange keys = AdmittedKeys(problem.sequences[sequence], problem.mask, q_row);
  const auto admitted = static_cast<double>(keys.end - keys.begin);
  if (problem.bias_kind != BiasKind::kAlibi || !(problem.eps > 0)) return admitted;
  // At least a tile of keys, which is computed whole.
  const double reach = std::max(
      64.0, ExpectedReach(SlopesOf(problem, sequence)[head], std::log(double{problem.eps})));
  return std::min(admitted, problem.mask.causal ? reach : 2 * reach);
}

int64_t EstimateScoreElements(const AttentionProblem& problem) {
  // A few rows stand for all of them: the count is piecewise linear in the row.
  constexpr int64_t kSamples = 8;
  double total = 0;
  for (int64_t n = 0; n < static_cast<int64_t>(problem.sequences.size()); ++n) {
    const int64_t q_len = problem.sequences[n].q_len;
    const int64_t samples = std::min(kSamples, q_len);
    // Without slopes all heads are alike.
    const bool alike = problem.bias_kind != BiasKind::kAlibi;
    const int heads = alike ? 1 : problem.num_q_heads;
    double sum = 0;
    for (int64_t k = 0; k < samples; ++k) {
      const int64_t row = (2 * k + 1) * q_len / (2 * samples);
      for (int head = 0; head < heads; ++head) sum += ExpectedKeys(problem, n, head, row);
    }
    if (samples > 0) {
      const double copies = alike ? problem.num_q_heads : 1;
      total += sum * copies * static_cast<double>(q_len) / static_cast<double>(samples);
    }
  }
  if (problem.direction == Direction::kBackward) total *= kBackwardWork;
  constexpr double kLimit = 9.2e18;  // just under INT64_MAX
  if (!(total < kLimit)) return std::numeric_limits<int64_t>::max();
  return std::max<int64_t>(1, static_cast<int64_t>(total));
}

}  // namespace flashbias
