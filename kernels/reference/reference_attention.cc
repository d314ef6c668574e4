#include "kernels/reference/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace flashbias {
namespace {

double Dot(DType dtype, const void* a, int64_t a_begin, const void* b, int64_t b_begin, int size) {
  double sum = 0;
  for (int d = 0; d < size; ++d) {
    sum += static_cast<double>(LoadElement(dtype, a, a_begin + d)) *
           static_cast<double>(LoadElement(dtype, b, b_begin + d));
  }
  return sum;
}

}  // namespace

ReferenceRow ReferenceAttentionRow(const AttentionProblem& problem, int64_t sequence, int64_t row,
                                   int head) {
  const Sequence& s = problem.sequences[sequence];
  const int kv_head = head / (problem.num_q_heads / problem.num_kv_heads);
  const int64_t q_row = s.q_begin + row;
  const int64_t i = s.query_start + row;

  // The same distance is taken off every |i - j| of the row and its bias added back to lse: softmax
  // does not see it, and at positions like 2^40 even double would round slope * |i - j| to 1e-4.
  const int64_t base_distance = std::abs(i - s.key_start);
  const double slope = problem.bias_kind == BiasKind::kAlibi
                           ? static_cast<double>(SlopesOf(problem, sequence)[head])
                           : 0.0;

  std::vector<double> logits;
  std::vector<int64_t> kv_rows;
  for (int64_t c = 0; c < s.kv_len; ++c) {
    const int64_t j = s.key_start + c;
    if (problem.mask.causal && j > i) continue;
    if (problem.mask.left_window > 0 && i - j >= problem.mask.left_window) continue;
    const int64_t kv_row = s.kv_begin + c;
    double logit =
        static_cast<double>(problem.softmax_scale) *
        Dot(problem.dtype, problem.q, (q_row * problem.num_q_heads + head) * problem.head_dim,
            problem.k, (kv_row * problem.num_kv_heads + kv_head) * problem.head_dim,
            problem.head_dim);
    if (problem.bias_kind == BiasKind::kAlibi) {
      logit -= slope * static_cast<double>(std::abs(i - j) - base_distance);
    } else if (problem.bias_kind == BiasKind::kLowRank) {
      const LowRankBias& b = problem.low_rank;
      const int64_t q_factor = q_row * b.phi_q_heads + (b.phi_q_heads == 1 ? 0 : head);
      const int64_t k_factor = kv_row * b.phi_k_heads + (b.phi_k_heads == 1 ? 0 : head);
      logit += Dot(b.dtype, b.phi_q, q_factor * b.rank, b.phi_k, k_factor * b.rank, b.rank);
    }
    logits.push_back(logit);
    kv_rows.push_back(kv_row);
  }

  ReferenceRow result{.o = std::vector<double>(problem.head_dim, 0.0),
                      .lse = -std::numeric_limits<double>::infinity()};
  if (logits.empty()) return result;
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - max);
  result.lse = max + std::log(sum) - slope * static_cast<double>(base_distance);
  for (size_t n = 0; n < logits.size(); ++n) {
    const double p = std::exp(logits[n] - max) / sum;
    const int64_t v_begin = (kv_rows[n] * problem.num_kv_heads + kv_head) * problem.head_dim;
    for (int d = 0; d < problem.head_dim; ++d) {
      result.o[d] += p * static_cast<double>(LoadElement(problem.dtype, problem.v, v_begin + d));
    }
  }
  return result;
}

}  // namespace flashbias
