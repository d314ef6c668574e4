// Results of one query row and head: from fragments to memory.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_STORE_ROWS_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_STORE_ROWS_CUH_

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/portable/partial_lse.cuh"

namespace flashbias::cuda::portable {

// One row and head of o, or of a gradient, to the problem's tensor: contiguous, any alignment. `i`
// says which of a thread's rows it is; an empty row is zero whatever `o` holds: NaN in values that
// it does not see may have got there.
template <typename T, int kHeadDim>
__device__ void StoreOutput(void* tensor, int head_dim, int64_t out_row, bool empty, float factor,
                            int i, const float (&o)[kHeadDim / 8][4]) {
  auto* to = static_cast<unsigned char*>(tensor) + out_row * head_dim * 2;
  const bool pairs = head_dim % 2 == 0 && IsAligned(tensor, 4);
#pragma unroll
  for (int n = 0; n < kHeadDim / 8; ++n) {
    const int column = 8 * n + 2 * (static_cast<int>(threadIdx.x % 4));
    const uint32_t pair = empty ? 0 : PackPair<T>(o[n][2 * i] * factor, o[n][2 * i + 1] * factor);
    unsigned char* at = to + 2 * column;
    if (pairs) {
      if (column < head_dim) *reinterpret_cast<uint32_t*>(at) = pair;
    } else {
      if (column < head_dim) StoreUnaligned16(at, pair);
      if (column + 1 < head_dim) StoreUnaligned16(at + 2, pair >> 16);
    }
  }
}

// o of a part of the keys, and its lse: of base 2, relative to the row's reference key, or for a
// low-rank bias absolute (partial_lse.cuh).
template <int kHeadDim, bool kLowRank>
__device__ void StorePartial(const AttentionParams& params, int64_t partial_row, double lse,
                             bool empty, float factor, int i, const float (&o)[kHeadDim / 8][4]) {
  if (lse < -FLT_MAX) lse = -FLT_MAX;  // all keys hidden, by -infinity
  const float high = empty ? -INFINITY : static_cast<float>(lse);
  const uint32_t low =
      empty ? 0 : __float_as_uint(static_cast<float>(lse - static_cast<double>(high)));
  auto* to = reinterpret_cast<float2*>(params.partial_o + partial_row * kHeadDim);
#pragma unroll
  for (int n = 0; n < kHeadDim / 8; ++n) {
    const int column = 8 * n + 2 * (static_cast<int>(threadIdx.x % 4));
    float2 pair =
        empty ? make_float2(0, 0) : make_float2(o[n][2 * i] * factor, o[n][2 * i + 1] * factor);
    if (kLowRank && n < 4) {
      pair.x = WithLastBit(pair.x, low >> column);
      pair.y = WithLastBit(pair.y, low >> (column + 1));
    }
    to[column / 2] = pair;
  }
  if (static_cast<int>(threadIdx.x % 4) == 0) params.partial_lse[partial_row] = high;
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_STORE_ROWS_CUH_
