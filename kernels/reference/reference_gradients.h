// The gradients of kernels/attention_problem.h in double precision, written to be read.
//
// Everything is computed from q, k, v, the bias, the mask and d_o; the problem's o and lse are not
// read. No tiles, no skipping: the oracle of the tests, as ReferenceAttentionRow is of the forward
// pass, with which it shares no code. Thread-safety: const members and pure functions.
// Single-threaded; rows may be given to several threads and their HeadGradients added up.
#ifndef FLASHBIAS_KERNELS_REFERENCE_REFERENCE_GRADIENTS_H_
#define FLASHBIAS_KERNELS_REFERENCE_REFERENCE_GRADIENTS_H_

#include <cstdint>
#include <vector>

#include "kernels/attention_problem.h"

namespace flashbias {

// One query row of one head against the keys that its mask admits: first_key, first_key + 1, ..
struct ReferenceScores {
  int64_t first_key = 0;         // 0-based in the sequence
  std::vector<double> p;         // softmax; empty where the mask admits no key
  std::vector<double> d_logit;   // dL/dlogit; empty of a forward problem
  std::vector<double> distance;  // |i - j|
  std::vector<double> o;         // [head_dim]
  double lse = 0;                // natural log; -infinity where the mask admits no key
};

// What one query head of one sequence adds to the gradients.
struct HeadGradients {
  std::vector<double> dq;      // [q_len, head_dim]
  std::vector<double> dk;      // [kv_len, head_dim]
  std::vector<double> dv;      // [kv_len, head_dim]
  double dslope = 0;           // of the slope that the head would have
  std::vector<double> dphi_q;  // [q_len, rank]; empty without a low-rank bias, as dphi_k
  std::vector<double> dphi_k;  // [kv_len, rank]
};

// One query head of one sequence, its tensors converted to double.
class ReferenceHead {
 public:
  // The problem's tensors are read here and not afterwards; d_o only of a backward problem.
  ReferenceHead(const AttentionProblem& problem, int64_t sequence, int head);

  int64_t q_len() const { return sequence_.q_len; }
  int64_t kv_len() const { return sequence_.kv_len; }
  int head_dim() const { return head_dim_; }
  int rank() const { return rank_; }

  // Rows of the tensors, 0-based in the sequence: head_dim() or rank() values.
  const double* q(int64_t row) const { return &q_[row * head_dim_]; }
  const double* k(int64_t row) const { return &k_[row * head_dim_]; }
  const double* v(int64_t row) const { return &v_[row * head_dim_]; }
  const double* d_o(int64_t row) const { return &d_o_[row * head_dim_]; }
  const double* phi_q(int64_t row) const { return &phi_q_[row * rank_]; }
  const double* phi_k(int64_t row) const { return &phi_k_[row * rank_]; }
  double softmax_scale() const { return softmax_scale_; }

  ReferenceScores Scores(int64_t row) const;

  HeadGradients Zero() const;
  // Adds what query row `row` contributes. REQUIRES: `scores` are the row's.
  void Add(int64_t row, const ReferenceScores& scores, HeadGradients* sums) const;

 private:
  Sequence sequence_;
  Mask mask_;
  bool backward_ = false;
  int head_dim_ = 0;
  int rank_ = 0;  // 0 without a low-rank bias
  double softmax_scale_ = 0;
  double slope_ = 0;
  std::vector<double> q_, k_, v_, d_o_, phi_q_, phi_k_;
};

// All gradients of a problem, in the shapes of its tensors.
struct ReferenceGradients {
  std::vector<double> dq;
  std::vector<double> dk;
  std::vector<double> dv;
  std::vector<double> dslopes;  // empty without ALiBi
  std::vector<double> dphi_q;   // empty without a low-rank bias, as dphi_k
  std::vector<double> dphi_k;
};

ReferenceGradients ZeroGradients(const AttentionProblem& problem);
// Adds what one query head of one sequence contributes where it belongs.
void AddHead(const AttentionProblem& problem, int64_t sequence, int head,
             const HeadGradients& gradients, ReferenceGradients* sums);

// REQUIRES: a backward problem. O(q_len kv_len head_dim) a head.
ReferenceGradients ComputeReferenceGradients(const AttentionProblem& problem);

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_REFERENCE_REFERENCE_GRADIENTS_H_
