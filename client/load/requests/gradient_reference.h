// Gradients of one key/value head of a workload's input in double precision, to compare answers
// with.
//
// Thread-safety: const methods. Making one computes the whole head: seconds from 4096 tokens on.
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_GRADIENT_REFERENCE_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_GRADIENT_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "client/load/requests/answer_sample.h"
#include "kernels/attention_problem.h"
#include "kernels/reference/reference_gradients.h"

namespace flashbias::client {

class GradientReference {
 public:
  // REQUIRES: a backward problem of one sequence. Reads its inputs; its o and lse are not used.
  GradientReference(const AttentionProblem& problem, int kv_head);

  // [head_dim], of a query and its head, or of a key and the key/value head.
  const double* Row(GradientOf which, int64_t row, int head) const;
  // Root mean square of an element, over all rows.
  double Magnitude(GradientOf which) const;

 private:
  const int head_dim_;
  const int first_head_;                // of q
  std::vector<HeadGradients> q_heads_;  // those that use the key/value head; for dq
  std::vector<double> dk_;              // [kv_len, head_dim]
  std::vector<double> dv_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_GRADIENT_REFERENCE_H_
