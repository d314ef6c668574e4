// The instantiations of the Hopper kernel, one dtype a file; hopper_attention.cc picks among them.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_ATTENTION_INSTANCES_H_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_ATTENTION_INSTANCES_H_

#include "kernels/cuda/hopper/hopper_attention.h"

namespace flashbias::cuda::hopper {

// As hopper_attention.h's LaunchAttention, for one dtype.
cudaError_t LaunchFloat16(const AttentionParams& params, int padded_head_dim, int num_sms,
                          bool after_key_norms, cudaStream_t stream);
cudaError_t LaunchBFloat16(const AttentionParams& params, int padded_head_dim, int num_sms,
                           bool after_key_norms, cudaStream_t stream);

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_ATTENTION_INSTANCES_H_
