#include "client/examples/train_alibi_layer/alibi_layer.h"

#include <utility>

namespace flashbias::examples {

absl::StatusOr<LayerActivations> LayerForward(const LayerWeights& weights, Matrix x,
                                              Attention* attention) {
  LayerActivations activations;
  activations.x = std::move(x);
  activations.input = {.num_heads = static_cast<int>(weights.slopes.size()),
                       .q = activations.x * weights.wq,
                       .k = activations.x * weights.wk,
                       .v = activations.x * weights.wv,
                       .slopes = weights.slopes};
  absl::StatusOr<AttentionOutput> output = attention->Forward(activations.input);
  if (!output.ok()) return output.status();
  activations.output = *std::move(output);
  activations.y = activations.x;
  activations.y.noalias() += activations.output.o * weights.wo;
  return activations;
}

absl::StatusOr<LayerGradients> LayerBackward(const LayerWeights& weights,
                                             const LayerActivations& activations, const Matrix& dy,
                                             bool want_dslopes, Attention* attention) {
  const Matrix d_o = dy * weights.wo.transpose();
  absl::StatusOr<AttentionGradients> of_attention =
      attention->Backward(activations.input, activations.output, d_o, want_dslopes);
  if (!of_attention.ok()) return of_attention.status();
  const Matrix xt = activations.x.transpose();
  LayerGradients gradients{.dx = dy,
                           .weights = {.wq = xt * of_attention->dq,
                                       .wk = xt * of_attention->dk,
                                       .wv = xt * of_attention->dv,
                                       .wo = activations.output.o.transpose() * dy,
                                       .slopes = std::move(of_attention->dslopes)}};
  gradients.dx.noalias() += of_attention->dq * weights.wq.transpose();
  gradients.dx.noalias() += of_attention->dk * weights.wk.transpose();
  gradients.dx.noalias() += of_attention->dv * weights.wv.transpose();
  return gradients;
}

}  // namespace flashbias::examples
