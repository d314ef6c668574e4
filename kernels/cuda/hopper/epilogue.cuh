// What a lane has summed up of its two rows, and how it gets to memory.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_EPILOGUE_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_EPILOGUE_CUH_

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/hopper/row_state.cuh"
#include "kernels/cuda/hopper/softmax.cuh"

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

// Natural log, the reference's own bias included.
__device__ __forceinline__ float LogSumExp(const ItemInfo& info, int row, float maximum,
                                           float sum) {
  constexpr float kLn2 = 0.693147180559945309f;
  const float relative = (maximum + __log2f(sum)) * kLn2;
  const int64_t position = row + info.exact_diagonal;
  const int key = ReferenceOfRow(info, KeysOfRow(info, row)).key;
  if (position == key) return relative;
  // Exact in double, however far the reference is.
  const double distance = fabs(static_cast<double>(position - key));
  return static_cast<float>(relative - static_cast<double>(info.slope) * distance);
}

// Writes both rows of the output and their log-sum-exp; `first_row` is the upper one.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void StoreRows(const ItemInfo& info, int first_row,
                                          const RowSums<kHeadDim>& rows) {
  const float sums[2] = {SumOfRow(rows, 0), SumOfRow(rows, 1)};
  const int64_t row_elements = static_cast<int64_t>(info.num_q_heads) * info.head_dim;
  const int lane_column = 2 * (threadIdx.x % 4);
  const bool in_pairs = info.head_dim % 2 == 0 && IsAligned(info.o, 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + 8 * half;
    if (row >= info.q_len) continue;
    // A row's largest probability is never below 1: without a sum it has no keys, and its
    // output is zero whatever stood in values that it does not see.
    const bool has_keys = sums[half] != 0;
    const float factor = has_keys ? __fdividef(1.0f, sums[half]) : 0.0f;
    auto* const to = static_cast<unsigned char*>(info.o) + row * row_elements * 2;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      const int column = 8 * n + lane_column;
      const uint32_t pair = PackPair<Element>(rows.output[4 * n + 2 * half] * factor,
                                              rows.output[4 * n + 2 * half + 1] * factor);
      if (in_pairs) {
        if (column < info.head_dim) {
          *reinterpret_cast<uint32_t*>(to + 2 * column) = has_keys ? pair : 0;
        }
      } else {
        if (column < info.head_dim) StoreUnaligned16(to + 2 * column, has_keys ? pair : 0);
        if (column + 1 < info.head_dim) {
          StoreUnaligned16(to + 2 * column + 2, has_keys ? pair >> 16 : 0);
        }
      }
    }
    if (info.lse != nullptr && threadIdx.x % 4 == 0) {
      info.lse[static_cast<int64_t>(row) * info.num_q_heads] =
          has_keys ? LogSumExp(info, row, half == 0 ? rows.max0 : rows.max1, sums[half])
                   : -INFINITY;
    }
  }
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_EPILOGUE_CUH_
