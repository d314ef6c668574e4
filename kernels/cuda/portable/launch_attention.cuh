// Launches the portable kernel for one element type; instantiated once for each.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_LAUNCH_ATTENTION_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_LAUNCH_ATTENTION_CUH_

#include <cuda_runtime_api.h>

#include <algorithm>

#include "kernels/cuda/portable/attention_kernel.cuh"

namespace flashbias::cuda::portable {

template <typename T, int kHeadDim, bool kLowRank>
cudaError_t LaunchKernel(const AttentionParams& params, int num_sms, cudaStream_t stream) {
  constexpr int kBytes = kSharedBytes<kHeadDim>;
  const auto kernel = AttentionKernel<T, kHeadDim, kLowRank>;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  int blocks_per_sm = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_per_sm, kernel, kThreads, kBytes);
  if (error != cudaSuccess) return error;
  const int blocks = std::min(params.num_items, std::max(1, blocks_per_sm) * num_sms);
  kernel<<<blocks, kThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

// `padded_head_dim` is 32, 64 or 128.
template <typename T>
cudaError_t LaunchAttentionOf(const AttentionParams& params, int padded_head_dim, bool low_rank,
                              int num_sms, cudaStream_t stream) {
  if (params.num_items == 0) return cudaSuccess;
  switch (padded_head_dim) {
    case 32:
      return low_rank ? LaunchKernel<T, 32, true>(params, num_sms, stream)
                      : LaunchKernel<T, 32, false>(params, num_sms, stream);
    case 64:
      return low_rank ? LaunchKernel<T, 64, true>(params, num_sms, stream)
                      : LaunchKernel<T, 64, false>(params, num_sms, stream);
    case 128:
      return low_rank ? LaunchKernel<T, 128, true>(params, num_sms, stream)
                      : LaunchKernel<T, 128, false>(params, num_sms, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

extern template cudaError_t LaunchAttentionOf<__half>(const AttentionParams&, int, bool, int,
                                                      cudaStream_t);
extern template cudaError_t LaunchAttentionOf<__nv_bfloat16>(const AttentionParams&, int, bool, int,
                                                             cudaStream_t);

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_LAUNCH_ATTENTION_CUH_
