// Gradients of a low-rank bias's factors: of each row of a product the sum of dS times the columns'
// factors, tile by tile.
//
// The factors come less their tile's centre and in bf16 pieces, as low_rank.cuh packs them. The
// centre is multiplied by the sum of dS in fp32, since a row's dS nearly cancel where factors are
// nearly equal. Sums lie where the results do: each element belongs to one thread.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_LOW_RANK_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_LOW_RANK_CUH_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/portable/low_rank.cuh"
#include "kernels/cuda/portable/mma.cuh"
#include "kernels/cuda/portable/tile_copy.cuh"

namespace flashbias::cuda::portable {

inline constexpr int kMaxFactorRank = 64;

// Where the gradients of a thread's two rows go: [rank] each; null: no such row, or not wanted.
struct FactorGradient {
  float* rows[2];
};

// Calls visit(row, component) for the components that this thread adds up.
template <typename Visit>
__device__ void ForFactorComponents(int column, int rank, Visit visit) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int component = column + 8 * (c / 2) + 2 * t + c % 2;
      if (component < rank) visit(i, c, component);
    }
  }
}

__device__ inline void ZeroFactorGradient(const FactorGradient& gradient, int rank) {
  for (int column = 0; column < rank; column += kRankSlice) {
    ForFactorComponents(column, rank, [&](int i, int, int component) {
      if (gradient.rows[i] != nullptr) gradient.rows[i][component] = 0;
    });
  }
}

// Two weights as bf16 and what that leaves of them, which is exact for fp16 and nothing for bf16.
template <typename T>
__device__ void SplitWeights(const uint32_t (&weights)[4], uint32_t (&high)[4],
                             uint32_t (&low)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = UnpackPair<T>(weights[i]);
    high[i] = PackPair<__nv_bfloat16>(pair.x, pair.y);
    const float2 top = UnpackPair<__nv_bfloat16>(high[i]);
    low[i] = PackPair<__nv_bfloat16>(pair.x - top.x, pair.y - top.y);
  }
}

// gradient += unscale * (weights times the factors of 64 columns from `begin` on, of `head`).
// `weights` are fragments of dS, `weight_sums` their rows' sums over these columns in all lanes.
// Right after LowRankBias of the same columns, by all threads of the block. Calls
// with_slice(column) while the slice from that component on is there.
template <typename T, typename WithSlice>
__device__ void AddFactorGradient(const Factor& columns, int head, int begin,
                                  const uint32_t (&weights)[4][4], const float (&weight_sums)[2],
                                  float unscale, FactorSlice& slice, const FactorGradient& gradient,
                                  WithSlice with_slice) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t offset = PieceOffset(lane % 16, lane / 16);
  for (int column = 0; column < columns.rank; column += kRankSlice) {
    // A single slice is still there.
    if (columns.rank > kRankSlice) PackFactorSlice(columns, head, begin, column, slice);
    float product[2][4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t high[4];
      uint32_t low[4];
      SplitWeights<T>(weights[k], high, low);
      // The small products first: sums are rounded to their largest term.
#pragma unroll
      for (int p = kPieces - 1; p >= 0; --p) {
        uint32_t factors[4];
        LoadMatricesTransposed(factors, SharedAddress(slice.pieces[p]) + offset + k * 16 * 32);
        if constexpr (!std::is_same_v<T, __nv_bfloat16>) {
          Mma<__nv_bfloat16>(product[0], low, factors[0], factors[1]);
          Mma<__nv_bfloat16>(product[1], low, factors[2], factors[3]);
        }
        Mma<__nv_bfloat16>(product[0], high, factors[0], factors[1]);
        Mma<__nv_bfloat16>(product[1], high, factors[2], factors[3]);
      }
    }
    ForFactorComponents(column, columns.rank, [&](int i, int c, int component) {
      if (gradient.rows[i] == nullptr) return;
      const float sum =
          fmaf(weight_sums[i], slice.centre[component - column], product[c / 2][2 * i + c % 2]);
      gradient.rows[i][component] = fmaf(sum, unscale, gradient.rows[i][component]);
    });
    with_slice(column);
  }
}

// Sums over this lane's columns of the weights in fragments.
template <typename T>
__device__ void SumRows(const uint32_t (&weights)[4][4], float (&sums)[2]) {
  sums[0] = sums[1] = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float2 pair = UnpackPair<T>(weights[k][n]);
      sums[n % 2] += pair.x + pair.y;
    }
  }
}

// Sums of factors over a thread's two rows, in shared memory: [element of ForFactorComponents'
// order][thread].
struct FactorSums {
  float values[kMaxFactorRank / 2][kThreads];

  __device__ float& Of(int column, int i, int c) {
    return values[column / 2 + 4 * i + c][threadIdx.x];
  }
};

__device__ inline void ZeroFactorSums(int rank, FactorSums& sums) {
  for (int column = 0; column < rank; column += kRankSlice) {
    ForFactorComponents(column, rank, [&](int i, int c, int) { sums.Of(column, i, c) = 0; });
  }
}

// sums += weights times the factors of the slice from `column` on, less accurately than
// AddFactorGradient. `weights` are fragments in bf16, `weight_sums` as there.
__device__ inline void AddFactorSums(const uint32_t (&weights)[4][4], const float (&weight_sums)[2],
                                     int rank, int column, const FactorSlice& slice,
                                     FactorSums& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t address = SharedAddress(slice.pieces[0]) + PieceOffset(lane % 16, lane / 16);
  float product[2][4] = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t factors[4];
    LoadMatricesTransposed(factors, address + k * 16 * 32);
    Mma<__nv_bfloat16>(product[0], weights[k], factors[0], factors[1]);
    Mma<__nv_bfloat16>(product[1], weights[k], factors[2], factors[3]);
  }
  ForFactorComponents(column, rank, [&](int i, int c, int component) {
    sums.Of(column, i, c) +=
        fmaf(weight_sums[i], slice.centre[component - column], product[c / 2][2 * i + c % 2]);
  });
}

// gradient += factors times sums, of each row.
__device__ inline void AddTimesFactorSums(const float (&factors)[2], int rank, FactorSums& sums,
                                          const FactorGradient& gradient) {
  for (int column = 0; column < rank; column += kRankSlice) {
    ForFactorComponents(column, rank, [&](int i, int c, int component) {
      if (gradient.rows[i] == nullptr) return;
      float& value = gradient.rows[i][component];
      value = fmaf(factors[i], sums.Of(column, i, c), value);
    });
  }
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_LOW_RANK_CUH_
