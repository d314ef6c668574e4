#include "tests/bench/gradient_check.h"

#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

namespace flashbias::bench {
namespace {

double Dot(DType dtype, const void* a, int64_t a_row, const void* b, int64_t b_row, int size) {
  double sum = 0;
  for (int d = 0; d < size; ++d) {
    sum += static_cast<double>(LoadElement(dtype, a, a_row * size + d)) *
           static_cast<double>(LoadElement(dtype, b, b_row * size + d));
  }
  return sum;
}

// One query head of one sequence; rows and keys are 0-based in the sequence.
class Head {
 public:
  Head(const AttentionProblem& problem, int64_t sequence, int head)
      : p_(problem),
        s_(problem.sequences[sequence]),
        head_(head),
        kv_head_(head / (problem.num_q_heads / problem.num_kv_heads)),
        slope_(problem.bias_kind == BiasKind::kAlibi
                   ? static_cast<double>(SlopesOf(problem, sequence)[head])
                   : 0) {}

  int64_t QRow(int64_t row) const { return (s_.q_begin + row) * p_.num_q_heads + head_; }
  int64_t KvRow(int64_t key) const { return (s_.kv_begin + key) * p_.num_kv_heads + kv_head_; }

  bool Sees(int64_t row, int64_t key) const {
    const int64_t distance = s_.query_start + row - (s_.key_start + key);
    return !(p_.mask.causal && distance < 0) &&
           !(p_.mask.left_window > 0 && distance >= p_.mask.left_window);
  }

  // P and dS of a pair that the mask admits.
  struct Pair {
    double p;
    double d_logit;
  };
  Pair PairOf(int64_t row, int64_t key) const {
    const auto distance =
        static_cast<double>(std::abs(s_.query_start + row - (s_.key_start + key)));
    double logit = static_cast<double>(p_.softmax_scale) *
                       Dot(p_.dtype, p_.q, QRow(row), p_.k, KvRow(key), p_.head_dim) -
                   slope_ * distance;
    if (p_.bias_kind == BiasKind::kLowRank) {
      const LowRankBias& bias = p_.low_rank;
      const auto vector = [this](int64_t row_in_tensor, int heads) {
        return row_in_tensor * heads + (heads == 1 ? 0 : head_);
      };
      logit += Dot(bias.dtype, bias.phi_q, vector(s_.q_begin + row, bias.phi_q_heads), bias.phi_k,
                   vector(s_.kv_begin + key, bias.phi_k_heads), bias.rank);
    }
    const double p = std::exp(logit - static_cast<double>(p_.lse[QRow(row)]));
    const void* const d_o = p_.gradients.d_o;
    const double d_p = Dot(p_.dtype, d_o, QRow(row), p_.v, KvRow(key), p_.head_dim);
    const double delta = Dot(p_.dtype, d_o, QRow(row), p_.o, QRow(row), p_.head_dim);
    return {.p = p, .d_logit = p * (d_p - delta)};
  }

 private:
  const AttentionProblem& p_;
  const Sequence s_;
  const int head_;
  const int kv_head_;
  const double slope_;
};

class ErrorSum {
 public:
  void Add(DType dtype, const void* actual, int64_t row, const std::vector<double>& expected) {
    const auto size = static_cast<int64_t>(expected.size());
    for (int64_t d = 0; d < size; ++d) {
      const double difference =
          static_cast<double>(LoadElement(dtype, actual, row * size + d)) - expected[d];
      error_ += difference * difference;
      norm_ += expected[d] * expected[d];
    }
  }
  double Relative() const { return std::sqrt(error_ / norm_); }

 private:
  double error_ = 0;
  double norm_ = 0;
};

void AddScaled(const AttentionProblem& p, double factor, const void* tensor, int64_t row,
               std::vector<double>* sum) {
  for (int d = 0; d < p.head_dim; ++d) {
    (*sum)[d] += factor * static_cast<double>(LoadElement(p.dtype, tensor, row * p.head_dim + d));
  }
}

}  // namespace

double SampledGradientError(const AttentionProblem& p, int num_rows) {
  std::mt19937_64 generator(7);
  const auto below = [&](int64_t bound) {
    return static_cast<int64_t>(generator() % static_cast<uint64_t>(bound));
  };
  const auto scale = static_cast<double>(p.softmax_scale);
  const int group = p.num_q_heads / p.num_kv_heads;
  ErrorSum dq_error, dk_error, dv_error;
  for (int n = 0; n < num_rows; ++n) {
    const int64_t sequence = below(static_cast<int64_t>(p.sequences.size()));
    const Sequence& s = p.sequences[sequence];
    const auto choose = [&](int64_t count) {
      const int64_t any = below(count);
      return n == 0 ? 0 : (n == 1 ? count - 1 : any);
    };
    const Head head(p, sequence, static_cast<int>(below(p.num_q_heads)));
    const int64_t row = choose(s.q_len);
    std::vector<double> dq(p.head_dim, 0.0);
    for (int64_t key = 0; key < s.kv_len; ++key) {
      if (!head.Sees(row, key)) continue;
      AddScaled(p, scale * head.PairOf(row, key).d_logit, p.k, head.KvRow(key), &dq);
    }
    dq_error.Add(p.dtype, p.gradients.dq, head.QRow(row), dq);

    const int kv_head = static_cast<int>(below(p.num_kv_heads));
    const int64_t key = choose(s.kv_len);
    std::vector<double> dk(p.head_dim, 0.0);
    std::vector<double> dv(p.head_dim, 0.0);
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      const Head of_group(p, sequence, h);
      for (int64_t q = 0; q < s.q_len; ++q) {
        if (!of_group.Sees(q, key)) continue;
        const auto [probability, d_logit] = of_group.PairOf(q, key);
        AddScaled(p, scale * d_logit, p.q, of_group.QRow(q), &dk);
        AddScaled(p, probability, p.gradients.d_o, of_group.QRow(q), &dv);
      }
    }
    const int64_t kv_row = Head(p, sequence, kv_head * group).KvRow(key);
    dk_error.Add(p.dtype, p.gradients.dk, kv_row, dk);
    dv_error.Add(p.dtype, p.gradients.dv, kv_row, dv);
  }
  double largest = 0;
  for (const ErrorSum* sum : {&dq_error, &dk_error, &dv_error}) {
    const double error = sum->Relative();
    if (!(error <= largest)) largest = error;  // a NaN too
    if (std::isnan(error)) return error;
  }
  return largest;
}

}  // namespace flashbias::bench
