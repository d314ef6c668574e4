// Scores of a tile of 64 keys, as the C fragments of two rows (mma.cuh): bias, mask, softmax.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_SCORE_TILE_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_SCORE_TILE_CUH_

#include <cmath>
#include <cstdint>

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/portable/mma.cuh"
#include "kernels/cuda/portable/query_row.cuh"
#include "kernels/cuda/portable/row_state.cuh"
#include "kernels/cuda/portable/tile_copy.cuh"

namespace flashbias::cuda::portable {

// Products of 64 keys from key_begin on -> scores in the log2 domain, relative to the bias of the
// row's reference key. `scale` is softmax_scale * log2(e).
__device__ inline void AddAlibi(const RowState (&rows)[2], float scale, bool two_sided,
                                int key_begin, float (&scores)[8][4]) {
  float left[2];
  float right[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto first_column = static_cast<float>(2 * (threadIdx.x % 4));
    left[i] = static_cast<float>(rows[i].bends.left - key_begin) - first_column;
    right[i] = static_cast<float>(rows[i].bends.right - key_begin) - first_column;
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto column = static_cast<float>(8 * n + i % 2);
      float distance = left[i / 2] - column;
      if (two_sided) distance = fmaxf(distance, column - right[i / 2]);
      scores[n][i] = fmaf(scale, scores[n][i], -rows[i / 2].slope_log2 * distance);
    }
  }
}

// The same without a bias.
__device__ inline void Scale(float scale, float (&scores)[8][4]) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] *= scale;
  }
}

// The same with a low-rank bias, relative to the largest product with a tile's centre that the row
// has met; the row's running maximum follows when that changes.
__device__ inline void AddLowRankBias(const float (&bias)[8][4], const double (&centre_product)[2],
                                      float scale, int key_begin, RowState (&rows)[2],
                                      float (&scores)[8][4]) {
  float constant[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    RowState& row = rows[i];
    constant[i] = 0;
    // A tile that the row does not see must not move its reference.
    if (!row.keys.Meets(key_begin, key_begin + kTileRows)) continue;
    const double difference = (centre_product[i] - row.frame) * kExactLog2E;
    if (difference <= 0) {
      constant[i] = static_cast<float>(difference);
    } else {
      row.max -= static_cast<float>(difference);
      row.frame = centre_product[i];
    }
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = fmaf(scale, scores[n][i], fmaf(kLog2E, bias[n][i], constant[i / 2]));
    }
  }
}

// Scores of keys that a row may not see become -infinity.
__device__ inline void Mask(const RowState (&rows)[2], int key_begin, float (&scores)[8][4]) {
  int first[2];
  int last[2];
  bool partial = false;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    first[i] = rows[i].keys.first - key_begin - 2 * (static_cast<int>(threadIdx.x % 4));
    last[i] = rows[i].keys.last - key_begin - 2 * (static_cast<int>(threadIdx.x % 4));
    partial =
        partial || rows[i].keys.first > key_begin || rows[i].keys.last < key_begin + kTileRows - 1;
  }
  if (!__any_sync(0xffffffffu, partial)) return;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 8 * n + i % 2;
      if (column < first[i / 2] || column > last[i / 2]) scores[n][i] = -INFINITY;
    }
  }
}

// Scores -> probabilities relative to the new row maxima, as A fragments; what was summed
// before has to be multiplied by `rescale`.
template <typename T>
__device__ void OnlineSoftmax(const float (&scores)[8][4], RowState (&rows)[2], float (&rescale)[2],
                              uint32_t (&p)[4][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    RowState& row = rows[i];
    float max = row.max;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      max = fmaxf(max, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
    }
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
    // A row that has seen no key yet has no maximum to be relative to.
    const float reference = max == -INFINITY ? 0.0f : max;
    rescale[i] = Exp2(row.max - reference);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float first = Exp2(scores[n][2 * i] - reference);
      const float second = Exp2(scores[n][2 * i + 1] - reference);
      sum += first + second;
      p[n / 2][n % 2 * 2 + i] = PackPair<T>(first, second);
    }
    row.sum = fmaf(row.sum, rescale[i], sum);
    row.max = max;
  }
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_SCORE_TILE_CUH_
