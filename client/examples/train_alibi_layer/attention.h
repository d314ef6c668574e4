// Causal attention with ALiBi slopes and its gradients, wherever they are computed: the one part of
// the model that local_attention.h and remote_attention.h do each in its own way.
//
//   logit[i, j] = <q_i, k_j> / sqrt(head_dim) - slope |i - j|      j <= i
//   o_i         = sum_j softmax_j(logit[i, j]) v_j
//
// Thread-safety: one caller at a time.
#ifndef FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_ATTENTION_H_
#define FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_ATTENTION_H_

#include <vector>

#include "absl/status/statusor.h"
#include "client/examples/train_alibi_layer/matrix.h"

namespace flashbias::examples {

// One sequence of n tokens. A row of a matrix holds a token's heads one after the other.
struct AttentionInput {
  int num_heads = 0;
  Matrix q, k, v;             // [n, num_heads * head_dim]
  std::vector<float> slopes;  // [num_heads]
};

struct AttentionOutput {
  Matrix o;                // [n, num_heads * head_dim]
  std::vector<float> lse;  // [n, num_heads], natural log of the softmax's denominator
};

struct AttentionGradients {
  Matrix dq, dk, dv;           // as q, k, v
  std::vector<float> dslopes;  // [num_heads]; empty where not wanted
};

class Attention {
 public:
  virtual ~Attention() = default;

  virtual absl::StatusOr<AttentionOutput> Forward(const AttentionInput& input) = 0;

  // Of a loss L with d_o = dL/do. REQUIRES: `output` is what Forward gave for `input`.
  virtual absl::StatusOr<AttentionGradients> Backward(const AttentionInput& input,
                                                      const AttentionOutput& output,
                                                      const Matrix& d_o, bool want_dslopes) = 0;
};

}  // namespace flashbias::examples

#endif  // FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_ATTENTION_H_
