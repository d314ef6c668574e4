// The kernel for Hopper (sm_90a): wgmma, TMA, warp specialisation.
//
// Serves fp16 and bf16, ALiBi of either sign or no bias, every mask, grouped heads. Not: low-rank
// biases, keys split over thread blocks, a softmax_scale that is not positive, slopes of more than
// kMaxSlopeOverScale times it; those are the portable kernel's.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_HOPPER_ATTENTION_H_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_HOPPER_ATTENTION_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/attention_params.h"
#include "kernels/dtype.h"

namespace flashbias::cuda::hopper {

// Tensor maps of one sequence: [head_dim, heads, rows]; rows past its end read as zero.
struct SequenceTensorMaps {
  CUtensorMap q;
  CUtensorMap k;
  CUtensorMap v;
};

inline constexpr int kKeyTileKeys = 128;
// Slope and scale enter the tensor cores as their quotient, in 16 bits.
inline constexpr float kMaxSlopeOverScale = 16384.0f;

// Query rows of one work item.
constexpr int QueryTileRows(int padded_head_dim) {
  return padded_head_dim == 32 ? 256 : (padded_head_dim == 64 ? 192 : 128);
}

// Asynchronous. `padded_head_dim` is 32, 64 or 128, at least every sequence's head_dim.
// `after_key_norms`: the launch before this one on the stream is LaunchKeyNorms; both may overlap.
cudaError_t LaunchAttention(const AttentionParams& params, DType dtype, int padded_head_dim,
                            int num_sms, bool after_key_norms, cudaStream_t stream);

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_HOPPER_ATTENTION_H_
