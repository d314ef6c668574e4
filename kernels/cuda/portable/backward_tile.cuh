// What both backward passes do with tiles of 64 rows. A warp has 16 rows of one side (queries in
// the pass over queries, keys in the pass over keys) and multiplies them with the 64 columns of a
// tile of the other side: twice for the scores and the gradients of the probabilities, whose
// fragments are then the A operands of the products with the columns' vectors (mma.cuh).
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_TILE_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_TILE_CUH_

#include <cmath>
#include <cstdint>

#include "kernels/cuda/backward_params.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/portable/mma.cuh"
#include "kernels/cuda/portable/portable_backward.h"
#include "kernels/cuda/portable/query_row.cuh"
#include "kernels/cuda/portable/tile_copy.cuh"

namespace flashbias::cuda::portable {

static_assert(kKvItemKeys == kTileRows && kQItemRows == kTileRows && kLimitRows == kTileRows,
              "one tile size");

__device__ inline int Lane() { return static_cast<int>(threadIdx.x) % 32; }
// The row in its tile of element c[2 i] of a thread's fragments, and the column of c[0] of the
// first.
__device__ inline int FragmentRow(int i) {
  return static_cast<int>(threadIdx.x) / 32 * 16 + Lane() / 4 + 8 * i;
}
__device__ inline int FragmentColumn() { return 2 * (Lane() % 4); }

__device__ inline TilePair QueriesAndGradients(const BackwardSequence& sequence) {
  const SequenceParams& forward = sequence.forward;
  return {forward.q,           sequence.d_o,          forward.q_len,
          forward.num_q_heads, forward.q_head_stride, forward.head_dim};
}

// The A operand of products with a warp's 16 rows of a tile: kept in registers, or where these are
// short read again for every product.
template <int kHeadDim, bool kInRegisters>
class RowOperand {
 public:
  // Of a tile that has arrived; unless in registers, it has to stay.
  __device__ void Load(uint32_t tile) {
    address_ =
        tile + Layout::Offset(static_cast<int>(threadIdx.x) / 32 * 16 + Lane() % 16, Lane() / 16);
    if constexpr (kInRegisters) {
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) LoadMatrices(fragments_[k], Address(k));
    }
  }

  // columns (of step k) += this; b holds the columns' fragments.
  template <typename T>
  __device__ void Multiply(int k, const uint32_t (&b)[4], float (&c0)[4], float (&c1)[4]) const {
    Mma<T>(c0, fragments_[k], b[0], b[1]);
    Mma<T>(c1, fragments_[k], b[2], b[3]);
  }

  __device__ void Prepare(int k) {
    if constexpr (!kInRegisters) LoadMatrices(fragments_[k], Address(k));
  }

 private:
  using Layout = TileLayout<kHeadDim>;
  __device__ uint32_t Address(int k) const { return Layout::Later(address_, 2 * k); }

  uint32_t address_ = 0;
  uint32_t fragments_[kHeadDim / 16][4];
};

// Products of the rows with kColumns columns of a tile; `address` is ColumnAddress() of the first.
template <typename T, int kHeadDim, int kColumns, bool kInRegisters>
__device__ void MultiplyRows(RowOperand<kHeadDim, kInRegisters>& rows, uint32_t address,
                             float (&products)[kColumns / 8][4]) {
  using Layout = TileLayout<kHeadDim>;
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) products[n][i] = 0;
  }
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    rows.Prepare(k);
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t columns[4];
      LoadMatrices(columns, Layout::Later(address, 2 * k) + 16 * n * Layout::kRowBytes);
      rows.template Multiply<T>(k, columns, products[2 * n], products[2 * n + 1]);
    }
  }
}

// Where this lane's part of the columns' fragments lies, head_dim being summed over.
template <int kHeadDim>
__device__ uint32_t ColumnAddress(uint32_t tile, int first_column) {
  return tile +
         TileLayout<kHeadDim>::Offset(first_column + Lane() % 8 + Lane() / 16 * 8, Lane() / 8 % 2);
}

// sums += weights times the columns' vectors, weights being 16 rows of 16 kSteps columns from
// first_column on. Their product starts from zero, so that the tensor cores' truncation does not
// grow with the number of tiles.
template <typename T, int kHeadDim, int kSteps>
__device__ void AddProduct(const uint32_t (&weights)[kSteps][4], uint32_t tile, int first_column,
                           float (&sums)[kHeadDim / 8][4]) {
  using Layout = TileLayout<kHeadDim>;
  const uint32_t first =
      tile + Layout::Offset(Lane() % 16, Lane() / 16) + first_column * Layout::kRowBytes;
#pragma unroll
  for (int begin = 0; begin < kHeadDim / 8; begin += 4) {
    float product[4][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t vectors[4];
        LoadMatricesTransposed(vectors,
                               Layout::Later(first, begin + 2 * n) + 16 * k * Layout::kRowBytes);
        Mma<T>(product[2 * n], weights[k], vectors[0], vectors[1]);
        Mma<T>(product[2 * n + 1], weights[k], vectors[2], vectors[3]);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[begin + n][i] += product[n][i];
    }
  }
}

template <int kCount>
__device__ void Multiply(float factor, float (&values)[kCount][4]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[n][i] *= factor;
  }
}

// A query row as both passes see it. A row that admits no key, or does not exist, has probabilities
// of 0.
struct GradientRow {
  RowStats stats;
  KeyRange keys;
  Bends bends;  // ALiBi
};

// `row` is below row_stride.
__device__ inline GradientRow MakeGradientRow(const BackwardSequence& sequence, int head, int row,
                                              float slope) {
  if (row >= sequence.forward.q_len) return {{INFINITY, 0}, {1, 0}, {0, 0}};
  GradientRow result = {sequence.rows[int64_t{head} * sequence.row_stride + row],
                        AdmittedKeys(sequence.forward, row, row),
                        {0, 0}};
  if (sequence.forward.slopes != nullptr && !result.keys.empty()) {
    result.bends = BendsOf(result.keys, row + sequence.forward.diagonal, slope);
  }
  return result;
}

// log2 a row of distance; 0 without ALiBi.
__device__ inline float SlopeOf(const SequenceParams& sequence, int head) {
  return sequence.slopes == nullptr ? 0.0f : sequence.slopes[head];
}

// First rows of the tiles of one side that are plain against a tile of the other: every query of
// the one sees every key, and |position - key| bends for none of them. No mask, no right side.
struct PlainTiles {
  int first;
  int last;
  __device__ bool Contain(int begin) const { return first <= begin && begin <= last; }

  static __device__ PlainTiles Make(int64_t first, int64_t last) {
    return {static_cast<int>(min(max(first, int64_t{0}), int64_t{INT32_MAX})),
            static_cast<int>(min(max(last, int64_t{-1}), int64_t{INT32_MAX}))};
  }
};

// Whether keys after a row's position are hidden, or their bias bends.
__device__ inline bool DiagonalMatters(const SequenceParams& sequence) {
  return sequence.causal != 0 || sequence.slopes != nullptr;
}

// Tiles of queries against the keys from first_key on.
__device__ inline PlainTiles PlainQueryTiles(const SequenceParams& sequence, int first_key) {
  constexpr int64_t kLast = kTileRows - 1;
  if (first_key + kLast >= sequence.kv_len) return {0, -1};
  return PlainTiles::Make(
      DiagonalMatters(sequence) ? first_key + kLast - sequence.diagonal : 0,
      min(sequence.q_len - 1 - kLast, int64_t{first_key} - sequence.window_diagonal - kLast));
}

// Tiles of keys against the queries from first_row on.
__device__ inline PlainTiles PlainKeyTiles(const SequenceParams& sequence, int first_row) {
  constexpr int64_t kLast = kTileRows - 1;
  if (first_row + kLast >= sequence.q_len) return {0, -1};
  const int64_t last = sequence.kv_len - 1 - kLast;
  return PlainTiles::Make(
      first_row + kLast + sequence.window_diagonal,
      DiagonalMatters(sequence) ? min(last, int64_t{first_row} + sequence.diagonal - kLast) : last);
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_TILE_CUH_
