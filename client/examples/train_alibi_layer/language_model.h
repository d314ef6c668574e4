// The smallest language model that has an ALiBi layer: it predicts the next byte of a text.
//
//   x = embedding[byte]   y = layer(x)   logits = y output   L = mean cross-entropy, next byte
//
// Thread-safety: plain values and functions without shared state.
#ifndef FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_LANGUAGE_MODEL_H_
#define FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_LANGUAGE_MODEL_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/examples/train_alibi_layer/alibi_layer.h"
#include "client/examples/train_alibi_layer/attention.h"
#include "client/examples/train_alibi_layer/matrix.h"

namespace flashbias::examples {

struct ModelShape {
  int channels() const { return num_heads * head_dim; }

  int num_heads = 50;
  int head_dim = 32;
};

// Weights, or their gradients.
struct ModelWeights {
  Matrix embedding;  // [256, channels]
  LayerWeights layer;
  Matrix output;  // [channels, 256]
};

struct LossAndGradients {
  double loss = 0;  // in nats a byte
  ModelWeights gradients;
};

// Normal random matrices, the same for the same seed, and slopes 2^(-8k/H).
ModelWeights InitialWeights(const ModelShape& shape, uint64_t seed);

// The model's loss on `text`, each byte but the last predicting the next one. Errors: those of
// `attention`. REQUIRES: at least two bytes.
absl::StatusOr<LossAndGradients> ComputeGradients(const ModelWeights& weights,
                                                  absl::string_view text, bool want_dslopes,
                                                  Attention* attention);

// Plain gradient descent: weights -= learning_rate * gradients. Slopes without gradients stay.
void Descend(const ModelWeights& gradients, float learning_rate, ModelWeights* weights);

}  // namespace flashbias::examples

#endif  // FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_LANGUAGE_MODEL_H_
