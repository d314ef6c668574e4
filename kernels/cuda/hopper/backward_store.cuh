// How a consumer's gradients get to memory.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_STORE_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_STORE_CUH_

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/hopper/epilogue.cuh"

namespace flashbias::cuda::hopper {

// Rows `first_row` and first_row + 8 of a lane, times `factor`, to a tensor whose rows are
// row_elements apart; those from num_rows on are left out.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void StoreGradient(void* to, int64_t row_elements, int head_dim,
                                              int first_row, int num_rows, float factor,
                                              const float (&values)[kHeadDim / 2]) {
  const bool in_pieces = head_dim % 8 == 0 && IsAligned(to, 16);
  const bool in_pairs = head_dim % 2 == 0 && IsAligned(to, 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + 8 * half;
    auto* const row_begin = static_cast<unsigned char*>(to) + row * row_elements * 2;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; n += 4) {
      uint32_t words[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        words[m] = PackPair<Element>(values[4 * (n + m) + 2 * half] * factor,
                                     values[4 * (n + m) + 2 * half + 1] * factor);
      }
      if (in_pieces) {
        const uint4 piece = TransposeQuad(words);
        const int column = 8 * (n + static_cast<int>(threadIdx.x % 4));
        if (row < num_rows && column < head_dim) {
          *reinterpret_cast<uint4*>(row_begin + 2 * column) = piece;
        }
        continue;
      }
      if (row >= num_rows) continue;
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int column = 8 * (n + m) + 2 * static_cast<int>(threadIdx.x % 4);
        unsigned char* const at = row_begin + 2 * column;
        if (in_pairs) {
          if (column < head_dim) *reinterpret_cast<uint32_t*>(at) = words[m];
        } else {
          if (column < head_dim) StoreUnaligned16(at, words[m]);
          if (column + 1 < head_dim) StoreUnaligned16(at + 2, words[m] >> 16);
        }
      }
    }
  }
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_STORE_CUH_
