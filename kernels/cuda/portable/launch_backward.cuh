// Launches the backward passes for one element type; instantiated once for each.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_LAUNCH_BACKWARD_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_LAUNCH_BACKWARD_CUH_

#include <cuda_runtime_api.h>

#include "kernels/cuda/portable/backward_keys.cuh"
#include "kernels/cuda/portable/backward_queries.cuh"

namespace flashbias::cuda::portable {

// A block an item: the hardware starts them in the order of the list, longest first.
template <typename Kernel>
cudaError_t LaunchItems(Kernel kernel, const BackwardParams& params, int num_items,
                        int shared_bytes, cudaStream_t stream) {
  if (num_items == 0) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<num_items, kThreads, shared_bytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename T, int kHeadDim, QueryKind kKind>
cudaError_t LaunchPasses(const BackwardParams& params, cudaStream_t stream) {
  constexpr bool kLowRank = kKind == QueryKind::kLowRank;
  const cudaError_t error =
      LaunchItems(BackwardKeysKernel<T, kHeadDim, kLowRank>, params, params.num_kv_items,
                  KeyPass<kHeadDim, kLowRank>::kSharedBytes, stream);
  if (error != cudaSuccess) return error;
  return LaunchItems(BackwardQueriesKernel<T, kHeadDim, kKind>, params, params.num_q_items,
                     QueryPass<kHeadDim, kLowRank>::kSharedBytes, stream);
}

template <typename T, int kHeadDim>
cudaError_t LaunchPassesOf(const BackwardParams& params, QueryKind kind, cudaStream_t stream) {
  switch (kind) {
    case QueryKind::kPlain:
      return LaunchPasses<T, kHeadDim, QueryKind::kPlain>(params, stream);
    case QueryKind::kSlopeGradient:
      return LaunchPasses<T, kHeadDim, QueryKind::kSlopeGradient>(params, stream);
    case QueryKind::kLowRank:
      return LaunchPasses<T, kHeadDim, QueryKind::kLowRank>(params, stream);
  }
  return cudaErrorInvalidValue;
}

// `padded_head_dim` is 32, 64 or 128.
template <typename T>
cudaError_t LaunchBackwardOf(const BackwardParams& params, int padded_head_dim, QueryKind kind,
                             cudaStream_t stream) {
  switch (padded_head_dim) {
    case 32:
      return LaunchPassesOf<T, 32>(params, kind, stream);
    case 64:
      return LaunchPassesOf<T, 64>(params, kind, stream);
    case 128:
      return LaunchPassesOf<T, 128>(params, kind, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

extern template cudaError_t LaunchBackwardOf<__half>(const BackwardParams&, int, QueryKind,
                                                     cudaStream_t);
extern template cudaError_t LaunchBackwardOf<__nv_bfloat16>(const BackwardParams&, int, QueryKind,
                                                            cudaStream_t);

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_LAUNCH_BACKWARD_CUH_
