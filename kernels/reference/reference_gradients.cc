#include "kernels/reference/reference_gradients.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace flashbias {
namespace {

// Four sums, which a compiler may keep in vectors.
double Dot(const double* a, const double* b, int size) {
  double sums[4] = {};
  int d = 0;
  for (; d + 4 <= size; d += 4) {
    for (int n = 0; n < 4; ++n) sums[n] += a[d + n] * b[d + n];
  }
  for (; d < size; ++d) sums[0] += a[d] * b[d];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void AddScaled(double factor, const double* from, int size, double* to) {
  for (int d = 0; d < size; ++d) to[d] += factor * from[d];
}

// Rows [begin, begin + count) of one head of a [rows, heads, width] tensor.
std::vector<double> ReadRows(DType dtype, const void* tensor, int64_t begin, int64_t count,
                             int heads, int head, int width) {
  std::vector<double> rows(count * width);
  for (int64_t row = 0; row < count; ++row) {
    for (int d = 0; d < width; ++d) {
      rows[row * width + d] = static_cast<double>(
          LoadElement(dtype, tensor, ((begin + row) * heads + head) * width + d));
    }
  }
  return rows;
}

void AddRows(const std::vector<double>& from, int64_t begin, int heads, int head, int width,
             std::vector<double>* to) {
  for (size_t n = 0; n < from.size(); ++n) {
    const auto row = begin + static_cast<int64_t>(n) / width;
    (*to)[(row * heads + head) * width + static_cast<int64_t>(n) % width] += from[n];
  }
}

int KvHead(const AttentionProblem& problem, int head) {
  return head / (problem.num_q_heads / problem.num_kv_heads);
}

}  // namespace

ReferenceHead::ReferenceHead(const AttentionProblem& problem, int64_t sequence, int head)
    : sequence_(problem.sequences[sequence]),
      mask_(problem.mask),
      backward_(problem.direction == Direction::kBackward),
      head_dim_(problem.head_dim),
      softmax_scale_(static_cast<double>(problem.softmax_scale)) {
  const auto read = [&](const void* tensor, int64_t begin, int64_t count, int heads, int index) {
    return ReadRows(problem.dtype, tensor, begin, count, heads, index, head_dim_);
  };
  const int kv_head = KvHead(problem, head);
  q_ = read(problem.q, sequence_.q_begin, sequence_.q_len, problem.num_q_heads, head);
  k_ = read(problem.k, sequence_.kv_begin, sequence_.kv_len, problem.num_kv_heads, kv_head);
  v_ = read(problem.v, sequence_.kv_begin, sequence_.kv_len, problem.num_kv_heads, kv_head);
  if (backward_) {
    d_o_ =
        read(problem.gradients.d_o, sequence_.q_begin, sequence_.q_len, problem.num_q_heads, head);
  }
  if (problem.bias_kind == BiasKind::kAlibi) {
    slope_ = static_cast<double>(SlopesOf(problem, sequence)[head]);
  } else if (problem.bias_kind == BiasKind::kLowRank) {
    const LowRankBias& bias = problem.low_rank;
    rank_ = bias.rank;
    phi_q_ = ReadRows(bias.dtype, bias.phi_q, sequence_.q_begin, sequence_.q_len, bias.phi_q_heads,
                      bias.phi_q_heads == 1 ? 0 : head, rank_);
    phi_k_ = ReadRows(bias.dtype, bias.phi_k, sequence_.kv_begin, sequence_.kv_len,
                      bias.phi_k_heads, bias.phi_k_heads == 1 ? 0 : head, rank_);
  }
}

ReferenceScores ReferenceHead::Scores(int64_t row) const {
  ReferenceScores scores{.o = std::vector<double>(head_dim_, 0.0),
                         .lse = -std::numeric_limits<double>::infinity()};
  const int64_t i = sequence_.query_start + row;
  // One distance is taken off all of a row, which softmax does not see: at positions like 2^40 even
  // double would round slope * |i - j| to 1e-4.
  const int64_t base_distance = std::abs(i - sequence_.key_start);
  std::vector<double>& logits = scores.p;
  for (int64_t c = 0; c < sequence_.kv_len; ++c) {
    const int64_t j = sequence_.key_start + c;
    if (mask_.causal && j > i) continue;
    if (mask_.left_window > 0 && i - j >= mask_.left_window) continue;
    if (logits.empty()) scores.first_key = c;
    scores.distance.push_back(static_cast<double>(std::abs(i - j)));
    double bias = -slope_ * static_cast<double>(std::abs(i - j) - base_distance);
    if (rank_ > 0) bias = Dot(phi_q(row), phi_k(c), rank_);
    logits.push_back(softmax_scale_ * Dot(q(row), k(c), head_dim_) + bias);
  }
  if (logits.empty()) return scores;

  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double& logit : logits) {
    logit = std::exp(logit - max);
    sum += logit;
  }
  for (double& p : scores.p) p /= sum;
  scores.lse = max + std::log(sum) - slope_ * static_cast<double>(base_distance);
  const auto keys = static_cast<int64_t>(scores.p.size());
  for (int64_t n = 0; n < keys; ++n) {
    if (scores.p[n] != 0) AddScaled(scores.p[n], v(scores.first_key + n), head_dim_, &scores.o[0]);
  }
  if (!backward_) return scores;
  const double delta = Dot(d_o(row), &scores.o[0], head_dim_);
  scores.d_logit.resize(keys);
  for (int64_t n = 0; n < keys; ++n) {
    if (scores.p[n] == 0) continue;
    scores.d_logit[n] = scores.p[n] * (Dot(d_o(row), v(scores.first_key + n), head_dim_) - delta);
  }
  return scores;
}

HeadGradients ReferenceHead::Zero() const {
  HeadGradients zero;
  zero.dq.resize(q_.size());
  zero.dk.resize(k_.size());
  zero.dv.resize(v_.size());
  zero.dphi_q.resize(phi_q_.size());
  zero.dphi_k.resize(phi_k_.size());
  return zero;
}

void ReferenceHead::Add(int64_t row, const ReferenceScores& scores, HeadGradients* sums) const {
  for (size_t n = 0; n < scores.p.size(); ++n) {
    const int64_t key = scores.first_key + static_cast<int64_t>(n);
    const double p = scores.p[n];
    const double d_logit = scores.d_logit[n];
    if (p == 0) continue;
    AddScaled(p, d_o(row), head_dim_, &sums->dv[key * head_dim_]);
    AddScaled(softmax_scale_ * d_logit, k(key), head_dim_, &sums->dq[row * head_dim_]);
    AddScaled(softmax_scale_ * d_logit, q(row), head_dim_, &sums->dk[key * head_dim_]);
    if (rank_ > 0) {
      AddScaled(d_logit, phi_k(key), rank_, &sums->dphi_q[row * rank_]);
      AddScaled(d_logit, phi_q(row), rank_, &sums->dphi_k[key * rank_]);
    }
    // One distance is taken off here too: a row's dS sum to 0.
    sums->dslope -= d_logit * (scores.distance[n] - scores.distance[0]);
  }
}

ReferenceGradients ZeroGradients(const AttentionProblem& problem) {
  ReferenceGradients zero;
  zero.dq.resize(problem.total_q * problem.num_q_heads * problem.head_dim);
  zero.dk.resize(problem.total_kv * problem.num_kv_heads * problem.head_dim);
  zero.dv.resize(zero.dk.size());
  if (problem.bias_kind == BiasKind::kAlibi) {
    zero.dslopes.resize(problem.num_q_heads *
                        (problem.alibi.per_sequence ? problem.sequences.size() : 1));
  } else if (problem.bias_kind == BiasKind::kLowRank) {
    const LowRankBias& bias = problem.low_rank;
    zero.dphi_q.resize(problem.total_q * bias.phi_q_heads * bias.rank);
    zero.dphi_k.resize(problem.total_kv * bias.phi_k_heads * bias.rank);
  }
  return zero;
}

void AddHead(const AttentionProblem& problem, int64_t sequence, int head,
             const HeadGradients& gradients, ReferenceGradients* sums) {
  const Sequence& s = problem.sequences[sequence];
  const int kv_head = KvHead(problem, head);
  const int dim = problem.head_dim;
  AddRows(gradients.dq, s.q_begin, problem.num_q_heads, head, dim, &sums->dq);
  AddRows(gradients.dk, s.kv_begin, problem.num_kv_heads, kv_head, dim, &sums->dk);
  AddRows(gradients.dv, s.kv_begin, problem.num_kv_heads, kv_head, dim, &sums->dv);
  if (problem.bias_kind == BiasKind::kAlibi) {
    const int64_t of_sequence = problem.alibi.per_sequence ? sequence * problem.num_q_heads : 0;
    sums->dslopes[of_sequence + head] += gradients.dslope;
  } else if (problem.bias_kind == BiasKind::kLowRank) {
    const LowRankBias& bias = problem.low_rank;
    AddRows(gradients.dphi_q, s.q_begin, bias.phi_q_heads, bias.phi_q_heads == 1 ? 0 : head,
            bias.rank, &sums->dphi_q);
    AddRows(gradients.dphi_k, s.kv_begin, bias.phi_k_heads, bias.phi_k_heads == 1 ? 0 : head,
            bias.rank, &sums->dphi_k);
  }
}

ReferenceGradients ComputeReferenceGradients(const AttentionProblem& problem) {
  ReferenceGradients sums = ZeroGradients(problem);
  for (int64_t n = 0; n < static_cast<int64_t>(problem.sequences.size()); ++n) {
    for (int head = 0; head < problem.num_q_heads; ++head) {
      const ReferenceHead reference(problem, n, head);
      HeadGradients gradients = reference.Zero();
      for (int64_t row = 0; row < reference.q_len(); ++row) {
        reference.Add(row, reference.Scores(row), &gradients);
      }
      AddHead(problem, n, head, gradients, &sums);
    }
  }
  return sums;
}

}  // namespace flashbias
