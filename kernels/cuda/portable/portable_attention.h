// The kernel for every NVIDIA GPU from sm_80 on: mma.sync, cp.async.
//
// Serves all that a plan can describe: fp16 and bf16, any head_dim up to 128, ALiBi of either sign,
// low-rank biases, every mask, grouped heads, keys split over thread blocks.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_PORTABLE_ATTENTION_H_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_PORTABLE_ATTENTION_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/attention_params.h"
#include "kernels/dtype.h"

namespace flashbias::cuda::portable {

// The tile of one work item; the planner cuts by these.
inline constexpr int kQueryTileRows = 64;  // query rows times heads_per_tile
inline constexpr int kKeyTileKeys = 64;
// A part of the keys is worth its own thread block from here on; beyond so many, merging costs
// more.
inline constexpr int kMinKeysPerSplit = 256;
inline constexpr int kMaxSplits = 128;

// Asynchronous. `padded_head_dim` is 32, 64 or 128, at least every sequence's head_dim.
cudaError_t LaunchAttention(const AttentionParams& params, DType dtype, int padded_head_dim,
                            bool low_rank, int num_sms, cudaStream_t stream);

// Merges the parts of sequences with num_splits > 1, in the order of the keys, into o and lse.
cudaError_t LaunchMergeSplits(const AttentionParams& params, DType dtype, int padded_head_dim,
                              cudaStream_t stream);

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_PORTABLE_ATTENTION_H_
