// The backward kernels for Hopper (sm_90a): wgmma, TMA, warp specialisation.
//
// Serve fp16 and bf16, ALiBi of either sign or no bias, every mask, grouped heads, any
// softmax_scale that is finite and not 0. Not low-rank biases; those are the portable kernels'.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_HOPPER_BACKWARD_H_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_HOPPER_BACKWARD_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/backward_params.h"
#include "kernels/dtype.h"

namespace flashbias::cuda::hopper {

// Tensor maps of one sequence: [head_dim, heads, rows], boxes of 64 rows; rows past its end read as
// zero.
struct BackwardTensorMaps {
  CUtensorMap q;
  CUtensorMap k;
  CUtensorMap v;
  CUtensorMap d_o;
};

// A distance's bias is the sum of two over as much as an item's keys: a steeper slope would lose
// the last bits of the probabilities.
inline constexpr float kMaxBackwardSlope = 4.0f;

// Keys of a kv item, query rows of a q item.
constexpr int KvItemKeys(int padded_head_dim) { return padded_head_dim == 32 ? 192 : 128; }
constexpr int QItemRows(int padded_head_dim) { return padded_head_dim == 128 ? 128 : 192; }

// Maps of a bound sequence; those without rows stay as they are, and unused. INTERNAL: no driver,
// or it refused. Host code, thread-safe.
absl::Status EncodeBackwardMaps(const BackwardSequence& sequence, DType dtype, int padded_head_dim,
                                BackwardTensorMaps* maps);

// Both passes, after LaunchBackwardRows on the same stream. Asynchronous. `padded_head_dim` is 32,
// 64 or 128, at least every sequence's head_dim. `wants_dslopes`: a sequence has dslope_partials.
cudaError_t LaunchBackward(const BackwardParams& params, DType dtype, int padded_head_dim,
                           bool wants_dslopes, int num_sms, cudaStream_t stream);

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_HOPPER_BACKWARD_H_
