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

  // Positions may lie 2^48 apart: in double, such a bias would swallow the rest of its logit.
  std::vector<long double> logits;
  std::vector<int64_t> kv_rows;
  for (int64_t c = 0; c < s.kv_len; ++c) {
    const int64_t j = s.key_start + c;
    if (problem.mask.causal && j > i) continue;
    if (problem.mask.left_window > 0 && i - j >= problem.mask.left_window) continue;
    const int64_t kv_row = s.kv_begin + c;
    long double logit =
        static_cast<double>(problem.softmax_scale) *
        Dot(problem.dtype, problem.q, (q_row * problem.num_q_heads + head) * problem.head_dim,
            problem.k, (kv_row * problem.num_kv_heads + kv_head) * problem.head_dim,
            problem.head_dim);
    if (problem.bias_kind == BiasKind::kAlibi) {
      logit -= static_cast<long double>(SlopesOf(problem, sequence)[head]) *
               static_cast<long double>(std::abs(i - j));
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
  const long double max = *std::max_element(logits.begin(), logits.end());
  const auto weight = [&](size_t n) { return std::exp(static_cast<double>(logits[n] - max)); };
  double sum = 0;
  for (size_t n = 0; n < logits.size(); ++n) sum += weight(n);
  result.lse = static_cast<double>(max + std::log(sum));
  for (size_t n = 0; n < logits.size(); ++n) {
    const double p = weight(n) / sum;
    const int64_t v_begin = (kv_rows[n] * problem.num_kv_heads + kv_head) * problem.head_dim;
    for (int d = 0; d < problem.head_dim; ++d) {
      result.o[d] += p * static_cast<double>(LoadElement(problem.dtype, problem.v, v_begin + d));
    }
  }
  return result;
}

}  // namespace flashbias
