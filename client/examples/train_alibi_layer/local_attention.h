// Attention in this process, as plain loops in double precision: what the server's answers are
// compared with.
#ifndef FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_LOCAL_ATTENTION_H_
#define FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_LOCAL_ATTENTION_H_

#include "client/examples/train_alibi_layer/attention.h"

namespace flashbias::examples {

class LocalAttention : public Attention {
 public:
  absl::StatusOr<AttentionOutput> Forward(const AttentionInput& input) override;
  absl::StatusOr<AttentionGradients> Backward(const AttentionInput& input,
                                              const AttentionOutput& output, const Matrix& d_o,
                                              bool want_dslopes) override;
};

}  // namespace flashbias::examples

#endif  // FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_LOCAL_ATTENTION_H_
