// What a lane has summed up of its two rows.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_ROW_SUMS_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_ROW_SUMS_CUH_

#include "kernels/cuda/hopper/layout.cuh"
#include "kernels/cuda/softmax_math.cuh"

namespace flashbias::cuda::hopper {

// The running softmax of a lane's two rows.
template <int kHeadDim>
struct RowSums {
  static constexpr int kOutputs = Layout<kHeadDim>::kValueColumns / 2;  // a lane's

  float output[kOutputs];
  float max0;
  float max1;
  float sum0;  // of this lane's columns; unused where sums come from the ones
  float sum1;
};

// All lanes of a quad get it, and must ask together.
template <int kHeadDim>
__device__ __forceinline__ float SumOfRow(const RowSums<kHeadDim>& rows, int half) {
  if constexpr (Layout<kHeadDim>::kSumsByOnes) return rows.output[kHeadDim / 2 + 2 * half];
  return QuadSum(half == 0 ? rows.sum0 : rows.sum1);
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_ROW_SUMS_CUH_
