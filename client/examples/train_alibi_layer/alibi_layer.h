// A residual attention layer with ALiBi, forward and backward; the attention itself is given.
//
//   q = x Wq   k = x Wk   v = x Wv   o = attention(q, k, v, slopes)   y = x + o Wo
//
// Thread-safety: plain values and functions without shared state.
#ifndef FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_ALIBI_LAYER_H_
#define FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_ALIBI_LAYER_H_

#include <vector>

#include "absl/status/statusor.h"
#include "client/examples/train_alibi_layer/attention.h"
#include "client/examples/train_alibi_layer/matrix.h"

namespace flashbias::examples {

struct LayerWeights {
  Matrix wq, wk, wv, wo;      // [channels, channels]
  std::vector<float> slopes;  // [num_heads]
};

// What the backward pass needs of the forward pass.
struct LayerActivations {
  Matrix x;  // [n, channels]
  AttentionInput input;
  AttentionOutput output;
  Matrix y;  // [n, channels]
};

struct LayerGradients {
  Matrix dx;             // [n, channels]
  LayerWeights weights;  // slopes are empty where not wanted
};

// x is [n, channels]. Errors: those of `attention`.
absl::StatusOr<LayerActivations> LayerForward(const LayerWeights& weights, Matrix x,
                                              Attention* attention);

// dy = dL/dy, [n, channels]. Errors: those of `attention`.
absl::StatusOr<LayerGradients> LayerBackward(const LayerWeights& weights,
                                             const LayerActivations& activations, const Matrix& dy,
                                             bool want_dslopes, Attention* attention);

}  // namespace flashbias::examples

#endif  // FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_ALIBI_LAYER_H_
