#include "kernels/work_estimate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/skip_table.h"

namespace flashbias {
namespace {

// Keys that hold mass for one row: unit-variance logits rarely reach beyond +-12 nats, so
// W ~ (24 + ln(1/eps) + ln(1/(1 - exp(-s)))) / s.
double ExpectedReach(double slope, double eps) {
  if (!(slope > 0) || !(eps > 0)) return std::numeric_limits<double>::infinity();
  return (24.0 - std::log(eps) - std::log(-std::expm1(-slope))) / slope;
}

// Rows x keys that the mask admits, closed form up to the window: a row sees at most `reach` keys.
double AdmittedElements(const Sequence& s, const Mask& mask, double reach) {
  if (s.q_len == 0 || s.kv_len == 0) return 0;
  // Sampling a few rows keeps this O(1) and is exact at the ends of the linear pieces.
  constexpr int kSamples = 16;
  const int64_t samples = std::min<int64_t>(kSamples, s.q_len);
  double sum = 0;
  for (int64_t n = 0; n < samples; ++n) {
    const int64_t row = (2 * n + 1) * s.q_len / (2 * samples);
    const KeyRange keys = AdmittedKeys(s, mask, row);
    const double two_sided_reach = mask.causal ? reach : 2 * reach;
    sum += std::min(static_cast<double>(keys.end - keys.begin), two_sided_reach);
  }
  return sum / static_cast<double>(samples) * static_cast<double>(s.q_len);
}

}  // namespace

int64_t EstimateScoreElements(const AttentionProblem& problem) {
  double total = 0;
  for (int64_t n = 0; n < static_cast<int64_t>(problem.sequences.size()); ++n) {
    const Sequence& sequence = problem.sequences[n];
    if (problem.bias_kind != BiasKind::kAlibi) {
      total += problem.num_q_heads * AdmittedElements(sequence, problem.mask,
                                                      std::numeric_limits<double>::infinity());
      continue;
    }
    const float* slopes = SlopesOf(problem, n);
    for (int head = 0; head < problem.num_q_heads; ++head) {
      total += AdmittedElements(sequence, problem.mask, ExpectedReach(slopes[head], problem.eps));
    }
  }
  constexpr double kLimit = 9.2e18;  // just under INT64_MAX
  if (!(total < kLimit)) return std::numeric_limits<int64_t>::max();
  return std::max<int64_t>(1, static_cast<int64_t>(total));
}

}  // namespace flashbias
