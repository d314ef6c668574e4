// Attention on a server: one Attend and one AttendBackward call each.
//
// d_o is sent multiplied by a power of two that brings its largest element to 1 .. 2, and what
// comes back, which is linear in d_o, divided by it: the gradient of a mean over many tokens
// would otherwise fall below float16's smallest values.
#ifndef FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_REMOTE_ATTENTION_H_
#define FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_REMOTE_ATTENTION_H_

#include "absl/time/time.h"
#include "client/attention_client.h"
#include "client/examples/train_alibi_layer/attention.h"
#include "kernels/dtype.h"

namespace flashbias::examples {

class RemoteAttention : public Attention {
 public:
  // `client` outlives this; tensors travel as `dtype`; `timeout` is of each call.
  RemoteAttention(client::AttentionClient* client, DType dtype, absl::Duration timeout)
      : client_(client), dtype_(dtype), timeout_(timeout) {}

  // Errors: those of the call; OUT_OF_RANGE: a value is finite, and infinite as `dtype`.
  absl::StatusOr<AttentionOutput> Forward(const AttentionInput& input) override;
  absl::StatusOr<AttentionGradients> Backward(const AttentionInput& input,
                                              const AttentionOutput& output, const Matrix& d_o,
                                              bool want_dslopes) override;

  // Of all calls up to now, without the conversions.
  absl::Duration time_in_calls() const { return time_in_calls_; }

 private:
  client::AttentionClient* const client_;
  const DType dtype_;
  const absl::Duration timeout_;
  absl::Duration time_in_calls_ = absl::ZeroDuration();
};

}  // namespace flashbias::examples

#endif  // FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_REMOTE_ATTENTION_H_
