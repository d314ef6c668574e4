// How what a lane has summed up of its two rows gets to memory.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_EPILOGUE_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_EPILOGUE_CUH_

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/hopper/row_state.cuh"
#include "kernels/cuda/hopper/row_sums.cuh"

namespace flashbias::cuda::hopper {

// Natural log, the reference's own bias included.
__device__ __forceinline__ float LogSumExp(const ItemInfo& info, int row, float maximum,
                                           float sum) {
  const float relative = (maximum + __log2f(sum)) * static_cast<float>(kLn2);
  const int64_t position = row + info.exact_diagonal;
  const int key = ReferenceOfRow(info, KeysOfRow(info, row)).key;
  if (position == key) return relative;
  // Exact in double, however far the reference is.
  const double distance = fabs(static_cast<double>(position - key));
  return static_cast<float>(relative - static_cast<double>(info.slope) * distance);
}

// Word n of lane m of a quad becomes word m of lane n.
__device__ __forceinline__ uint4 TransposeQuad(const uint32_t (&words)[4]) {
  const bool odd = threadIdx.x % 2 != 0;
  const bool upper = threadIdx.x % 4 >= 2;
  const uint32_t a = __shfl_xor_sync(~0u, odd ? words[0] : words[1], 1);
  const uint32_t b = __shfl_xor_sync(~0u, odd ? words[2] : words[3], 1);
  const uint2 low = odd ? make_uint2(a, words[1]) : make_uint2(words[0], a);
  const uint2 high = odd ? make_uint2(b, words[3]) : make_uint2(words[2], b);
  const uint32_t c = __shfl_xor_sync(~0u, upper ? low.x : high.x, 2);
  const uint32_t d = __shfl_xor_sync(~0u, upper ? low.y : high.y, 2);
  return upper ? make_uint4(c, d, high.x, high.y) : make_uint4(low.x, low.y, c, d);
}

// Output rows that lie in whole 16-byte pieces, each written by one lane.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void StoreAlignedOutput(const ItemInfo& info, int first_row,
                                                   const RowSums<kHeadDim>& rows,
                                                   const float (&sums)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + 8 * half;
    const bool has_keys = sums[half] != 0;
    const float factor = __fdividef(1.0f, sums[half]);
    auto* const to = static_cast<uint16_t*>(info.o) +
                     static_cast<int64_t>(row) * (info.num_q_heads * info.head_dim);
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; n += 4) {
      uint32_t words[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        words[m] = PackPair<Element>(rows.output[4 * (n + m) + 2 * half] * factor,
                                     rows.output[4 * (n + m) + 2 * half + 1] * factor);
      }
      uint4 piece = TransposeQuad(words);
      if (!has_keys) piece = make_uint4(0, 0, 0, 0);
      const int column = 8 * (n + threadIdx.x % 4);
      if (row < info.q_len && column < info.head_dim) {
        *reinterpret_cast<uint4*>(to + column) = piece;
      }
    }
  }
}

// Output rows of any head_dim and alignment.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void StoreAnyOutput(const ItemInfo& info, int first_row,
                                               const RowSums<kHeadDim>& rows,
                                               const float (&sums)[2]) {
  const int64_t row_elements = static_cast<int64_t>(info.num_q_heads) * info.head_dim;
  const int lane_column = 2 * (threadIdx.x % 4);
  const bool in_pairs = info.head_dim % 2 == 0 && IsAligned(info.o, 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + 8 * half;
    if (row >= info.q_len) continue;
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
  }
}

// Writes both rows of the output and their log-sum-exp; `first_row` is the upper one. A row's
// largest probability is never below 1: without a sum it has no keys, and its output is zero
// whatever stood in values that it does not see.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void StoreRows(const ItemInfo& info, int first_row,
                                          const RowSums<kHeadDim>& rows) {
  const float sums[2] = {SumOfRow(rows, 0), SumOfRow(rows, 1)};
  if (info.head_dim % 8 == 0 && IsAligned(info.o, 16)) {
    StoreAlignedOutput<Element>(info, first_row, rows, sums);
  } else {
    StoreAnyOutput<Element>(info, first_row, rows, sums);
  }
  // One lane of a quad for each of its rows.
  const int half = threadIdx.x % 4;
  const int row = first_row + 8 * half;
  if (info.lse == nullptr || half >= 2 || row >= info.q_len) return;
  const float sum = half == 0 ? sums[0] : sums[1];
  info.lse[static_cast<int64_t>(row) * info.num_q_heads] =
      sum != 0 ? LogSumExp(info, row, half == 0 ? rows.max0 : rows.max1, sum) : -INFINITY;
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_EPILOGUE_CUH_
