// Low-rank biases <phi_q, phi_k> in fp32 accuracy on bf16 tensor cores.
//
// The rows of the product have one of the factors and the columns the other: rows are queries, but
// in the backward pass over keys. A tile's column factor is taken less the tile's centre, component
// by component the value of smallest magnitude: what is left is small where all factors are large,
// as positions are, and exact where some are, as those of hidden keys are. The product with the
// centre is one number a row and tile, in double. Both factors are cut into three bf16 pieces (24
// bits) and multiplied piece by piece.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_LOW_RANK_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_LOW_RANK_CUH_

#include <cuda_bf16.h>

#include <cfloat>
#include <cstdint>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/portable/mma.cuh"

namespace flashbias::cuda::portable {

inline constexpr int kRankSlice = 16;  // columns of the factors that one pass takes
inline constexpr int kPieces = 3;

struct Factor {
  const void* data;  // [length, heads, rank], contiguous, any alignment
  int length;
  int heads;  // 1: shared by all
  int rank;
  int dtype;  // DType's order

  __device__ int64_t Begin(int64_t row, int head) const {
    return (row * heads + (heads == 1 ? 0 : head)) * rank;
  }
};

__device__ inline Factor QueryFactor(const SequenceParams& sequence) {
  return {sequence.phi_q, sequence.q_len, sequence.phi_q_heads, sequence.rank, sequence.phi_dtype};
}

__device__ inline Factor KeyFactor(const SequenceParams& sequence) {
  return {sequence.phi_k, sequence.kv_len, sequence.phi_k_heads, sequence.rank, sequence.phi_dtype};
}

// One slice of a tile's centred column factor, in shared memory.
struct FactorSlice {
  // [piece][row][kRankSlice] bf16, the two 16-byte halves of a row swapped where PieceOffset says.
  uint4 pieces[kPieces][64 * 2];
  float candidates[4][kRankSlice];  // [warp], for the centre
  float centre[kRankSlice];
};

// Byte offset of half a row's slice; the eight rows of an ldmatrix lie in different banks.
__device__ inline uint32_t PieceOffset(int row, int half) {
  return (row * 2 + (half ^ ((row >> 2) & 1))) * 16;
}

// Element `index` of a factor in DType's order of types. Infinity becomes the largest float, so
// that a key hidden by it stays hidden: its pieces would be NaN.
__device__ inline float LoadFactor(const void* data, int64_t index, int dtype) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  float value;
  if (dtype == 2) {
    value = __uint_as_float(LoadUnaligned32(bytes + 4 * index));
  } else {
    const uint32_t raw = LoadUnaligned16(bytes + 2 * index);
    value = dtype == 0 ? UnpackPair<__half>(raw).x : UnpackPair<__nv_bfloat16>(raw).x;
  }
  return isinf(value) ? copysignf(FLT_MAX, value) : value;
}

// value = pieces[0] + pieces[1] + pieces[2], by truncation: all have the sign of `value`, so none
// overflows and no two products of a pair of factors cancel.
__device__ inline void CutInPieces(float value, uint32_t (&pieces)[kPieces]) {
  if (isinf(value)) value = copysignf(FLT_MAX, value);
  if (isnan(value)) value = __uint_as_float(0x7fffffffu);  // one that truncation leaves a NaN
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const uint32_t top = __float_as_uint(value) & 0xffff0000u;
    pieces[i] = top >> 16;
    value -= __uint_as_float(top);
  }
}

// Components [column, column + kRankSlice) of the tile that begins at row `begin` of a factor. All
// threads of the block; they may still be reading the last slice before the first barrier, and may
// read this one afterwards.
__device__ inline void PackFactorSlice(const Factor& factor, int head, int begin, int column,
                                       FactorSlice& slice) {
  constexpr int kRowsPerThread = 8;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int c = thread % kRankSlice;
  const int first_row = thread / kRankSlice;
  float values[kRowsPerThread];
  float centre = INFINITY;
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    const int row = begin + first_row + i * kRowsPerThread;
    values[i] = 0;
    if (row < factor.length && column + c < factor.rank) {
      values[i] = LoadFactor(factor.data, factor.Begin(row, head) + column + c, factor.dtype);
      if (fabsf(values[i]) < fabsf(centre)) centre = values[i];
    }
  }
  const float other = __shfl_xor_sync(0xffffffffu, centre, kRankSlice);
  if (fabsf(other) < fabsf(centre)) centre = other;
  if (thread % 32 < kRankSlice) slice.candidates[warp][c] = centre;
  __syncthreads();

  centre = slice.candidates[0][c];
#pragma unroll
  for (int w = 1; w < 4; ++w) {
    if (fabsf(slice.candidates[w][c]) < fabsf(centre)) centre = slice.candidates[w][c];
  }
  if (isinf(centre)) centre = 0;  // no value but NaN
  if (thread < kRankSlice) slice.centre[c] = centre;
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    const int row = first_row + i * kRowsPerThread;
    uint32_t pieces[kPieces];
    CutInPieces(begin + row < factor.length ? values[i] - centre : 0.0f, pieces);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      auto* bytes = reinterpret_cast<unsigned char*>(slice.pieces[p]);
      *reinterpret_cast<uint16_t*>(bytes + PieceOffset(row, c / 8) + 2 * (c % 8)) =
          static_cast<uint16_t>(pieces[p]);
    }
  }
  __syncthreads();
}

// bias += <row, column - centre> in C fragments of 64 columns, centre_product += this lane's share
// of <row, centre>. `rows` holds components 2t, 2t + 1, 2t + 8, 2t + 9 of rows g and g + 8.
__device__ inline void MultiplyFactorSlice(const float (&rows)[2][4], const FactorSlice& slice,
                                           float (&bias)[8][4], double (&centre_product)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int t = lane % 4;
  uint32_t a[kPieces][4];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t low[kPieces];
      uint32_t high[kPieces];
      CutInPieces(rows[row][2 * half], low);
      CutInPieces(rows[row][2 * half + 1], high);
#pragma unroll
      for (int p = 0; p < kPieces; ++p) a[p][2 * half + row] = low[p] | high[p] << 16;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int c = 2 * t + 8 * (i / 2) + i % 2;
      centre_product[row] +=
          static_cast<double>(rows[row][i]) * static_cast<double>(slice.centre[c]);
    }
  }

  const uint32_t offset = PieceOffset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    uint32_t b[kPieces][4];
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      LoadMatrices(b[p], SharedAddress(slice.pieces[p]) + offset + n * 16 * 32);
    }
    // The small products first: sums are rounded to their largest term.
    constexpr int kPairs[6][2] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
#pragma unroll
    for (int i = 0; i < 6; ++i) {
      const int of_row = kPairs[i][0];
      const int of_column = kPairs[i][1];
      Mma<__nv_bfloat16>(bias[2 * n], a[of_row], b[of_column][0], b[of_column][1]);
      Mma<__nv_bfloat16>(bias[2 * n + 1], a[of_row], b[of_column][2], b[of_column][3]);
    }
  }
}

// The whole product of the 64 columns from `begin` on, of `head`, with the rows whose factors start
// at elements row_begin (-1: no row). Every lane of a row gets centre_product.
__device__ inline void LowRankBias(const Factor& rows, const int64_t (&row_begin)[2],
                                   const Factor& columns, int head, int begin, FactorSlice& slice,
                                   float (&bias)[8][4], double (&centre_product)[2]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) bias[n][i] = 0;
  }
  centre_product[0] = centre_product[1] = 0;
  for (int column = 0; column < columns.rank; column += kRankSlice) {
    PackFactorSlice(columns, head, begin, column, slice);
    float values[2][4];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = column + 2 * t + 8 * (i / 2) + i % 2;
        values[row][i] = row_begin[row] >= 0 && c < rows.rank
                             ? LoadFactor(rows.data, row_begin[row] + c, rows.dtype)
                             : 0.0f;
      }
    }
    MultiplyFactorSlice(values, slice, bias, centre_product);
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    centre_product[row] += __shfl_xor_sync(0xffffffffu, centre_product[row], 1);
    centre_product[row] += __shfl_xor_sync(0xffffffffu, centre_product[row], 2);
  }
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_LOW_RANK_CUH_
