// The kernel for Hopper (sm_90a): wgmma, TMA, warp specialisation.
//
// Serves fp16 and bf16, ALiBi of either sign or no bias, every mask, grouped heads. Not: low-rank
// biases, keys split over thread blocks, a softmax_scale that is not positive, slopes of more than
// kMaxSlopeOverScale times it, ALiBi in fp16 with a scale above kMaxFloat16Scale; those are the
// portable kernel's.
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
// Its smallest part is a multiple of 2^-24 in fp16; a large scale would make that visible.
inline constexpr float kMaxFloat16Scale = 64.0f;

// Query rows of one work item.
constexpr int QueryTileRows(int padded_head_dim) {
  return padded_head_dim == 32 ? 256 : (padded_head_dim == 64 ? 192 : 128);
}

// Query rows that are loaded at once: a consumer's panels lie side by side.
constexpr int QueryBoxRows(int padded_head_dim) {
  return padded_head_dim == 128 ? 64 : QueryTileRows(padded_head_dim);
}

// A bound plan and its parts in host memory, from which a launch may copy what its first thread
// blocks need into its own arguments.
struct HostPlan {
  AttentionParams params;
  const SequenceParams* sequences;        // [params.num_sequences]
  const SequenceTensorMaps* tensor_maps;  // [params.num_sequences]
  const WorkItem* items;                  // [params.num_items]
  const float* slopes;                    // of the first sequence; null: none
  // The launch before this one on the stream is LaunchKeyNorms; both may overlap.
  bool after_key_norms;
};

// Asynchronous. `padded_head_dim` is 32, 64 or 128, at least every sequence's head_dim.
cudaError_t LaunchAttention(const HostPlan& plan, DType dtype, int padded_head_dim, int num_sms,
                            cudaStream_t stream);

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_HOPPER_ATTENTION_H_
