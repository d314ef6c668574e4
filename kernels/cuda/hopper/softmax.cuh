// The softmax of one tile in registers: masks, running maxima, exponentials.
//
// `scores` are a warpgroup's 64 x 128 accumulators in units of <q, k>, the bias's ramp over the
// tile's keys included; a row's logit (row_state.cuh) is scores * scale_log2 + a shift of the row
// and tile. Element i belongs to the lane's row (i / 2) % 2.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_SOFTMAX_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_SOFTMAX_CUH_

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/hopper/row_state.cuh"
#include "kernels/cuda/softmax_math.cuh"

namespace flashbias::cuda::hopper {

inline constexpr int kScores = kKeyTileKeys / 2;  // a lane's; half of them for half a tile
// A maximum may grow by so much (log2) before sums and output are rescaled: exact, and 2^8 is far
// from what fp16 holds.
inline constexpr float kLazyGrowth = 8.0f;
// The exponential unit works on so many elements at a time; more, and the compiler holds them all.
inline constexpr int kChunk = 8;

// Bits 2 n + j of the lane's columns 8 n + j that are at most `last`.
__device__ __forceinline__ uint32_t ColumnsUpTo(int last) {
  const int count = last < 0 ? 0 : 2 * (last / 8) + min(last % 8 + 1, 2);
  return count >= 32 ? ~0u : (1u << count) - 1;
}

// Sets what the mask excludes to -infinity.
__device__ __forceinline__ void ApplyMask(float (&scores)[kScores], const ItemInfo& info, int row,
                                          int tile) {
  const int lane_begin = tile + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const VisibleKeys keys = KeysOfRow(info, row + 8 * half);
    const uint32_t admitted =
        ColumnsUpTo(keys.last - lane_begin) & ~ColumnsUpTo(keys.first - 1 - lane_begin);
#pragma unroll
    for (int e = 0; e < kScores / 2; ++e) {
      float& score = scores[4 * (e / 2) + 2 * half + e % 2];
      score = (admitted & 1u << e) != 0 ? score : -INFINITY;
    }
  }
}

// The same where only keys beyond each row's last one are excluded, from the lane's score kFrom on.
template <int kFrom, int kCount>
__device__ __forceinline__ void ApplyCut(float (&scores)[kCount], int last0, int last1, int tile) {
  const int begin = tile + 2 * kFrom + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t admitted = ColumnsUpTo((half == 0 ? last0 : last1) - begin);
#pragma unroll
    for (int e = 0; e < (kCount - kFrom) / 2; ++e) {
      float& score = scores[kFrom + 4 * (e / 2) + 2 * half + e % 2];
      score = (admitted & 1u << e) != 0 ? score : -INFINITY;
    }
  }
}

// Where a tile lies on both sides of the rows, the scores hold the left side's ramp throughout:
// corrects keys on the right.
__device__ __forceinline__ void BendRamp(float (&scores)[kScores], const ItemInfo& info, int row,
                                         int tile) {
  const int lane_begin = tile + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const VisibleKeys keys = KeysOfRow(info, row + 8 * half);
    const Reference reference = ReferenceOfRow(info, keys);
    const int position = keys.position - lane_begin;
    const auto turn = static_cast<float>(reference.left + reference.right - 2 * lane_begin);
#pragma unroll
    for (int e = 0; e < kScores / 2; ++e) {
      const int column = 8 * (e / 2) + e % 2;
      float& score = scores[4 * (e / 2) + 2 * half + e % 2];
      if (column > position) {
        score = fmaf(info.slope_in_scores, turn - static_cast<float>(2 * column), score);
      }
    }
  }
}

// True when a score of the warp exceeds its row's threshold, or a threshold is negative. Compares
// the bits of floats as integers, three at a time, which orders them wherever one is not negative.
__device__ __forceinline__ bool AnyAbove(const float (&scores)[kScores], float threshold0,
                                         float threshold1) {
  const int limit0 = __float_as_int(threshold0);
  const int limit1 = __float_as_int(threshold1);
  int max0 = limit0;
  int max1 = limit1;
  int max2 = limit0;
  int max3 = limit1;
#pragma unroll
  for (int n = 0; n < kScores; n += 8) {
    max0 = __vimax3_s32(max0, __float_as_int(scores[n]), __float_as_int(scores[n + 1]));
    max1 = __vimax3_s32(max1, __float_as_int(scores[n + 2]), __float_as_int(scores[n + 3]));
    max2 = __vimax3_s32(max2, __float_as_int(scores[n + 4]), __float_as_int(scores[n + 5]));
    max3 = __vimax3_s32(max3, __float_as_int(scores[n + 6]), __float_as_int(scores[n + 7]));
  }
  const bool above = max(max0, max2) > limit0 || max(max1, max3) > limit1;
  return __any_sync(~0u, above || limit0 < 0 || limit1 < 0);
}

template <int kCount>
__device__ __forceinline__ void RowMaxima(const float (&scores)[kCount], float* max0, float* max1) {
  float a = scores[0];
  float b = scores[2];
#pragma unroll
  for (int n = 0; n < kCount; n += 4) {
    a = fmaxf(a, fmaxf(scores[n], scores[n + 1]));
    b = fmaxf(b, fmaxf(scores[n + 2], scores[n + 3]));
  }
  *max0 = QuadMax(a);
  *max1 = QuadMax(b);
}

// probabilities = 2^(scores * scale_log2 + shift), in pairs; kSum adds them up as well. Chunk by
// chunk, each one's conversions under the next one's exponentials. `hand_over` is called half-way.
template <typename Element, bool kSum, int kCount, typename HandOver>
__device__ __forceinline__ void Exponentials(const float (&scores)[kCount],
                                             uint32_t (&probabilities)[kCount / 2],
                                             float scale_log2, float shift0, float shift1,
                                             float* sum0, float* sum1, const HandOver& hand_over) {
  constexpr int kChunks = kCount / kChunk;
  float e[kCount];
#pragma unroll
  for (int chunk = 0; chunk <= kChunks; ++chunk) {
    if (chunk < kChunks) {
#pragma unroll
      for (int i = chunk * kChunk; i < (chunk + 1) * kChunk; ++i) {
        e[i] = Exp2(fmaf(scores[i], scale_log2, i % 4 < 2 ? shift0 : shift1));
      }
#pragma unroll
      for (int i = chunk * kChunk; i < (chunk + 1) * kChunk; ++i) {
        asm volatile("" : "+f"(e[i])::"memory");
      }
    }
    if (chunk > 0) {
#pragma unroll
      for (int i = (chunk - 1) * kChunk; i < chunk * kChunk; i += 4) {
        if (kSum) {
          *sum0 += e[i] + e[i + 1];
          *sum1 += e[i + 2] + e[i + 3];
        }
        probabilities[i / 2] = PackPair<Element>(e[i], e[i + 1]);
        probabilities[i / 2 + 1] = PackPair<Element>(e[i + 2], e[i + 3]);
      }
#pragma unroll
      for (int i = (chunk - 1) * kChunk / 2; i < chunk * kChunk / 2; ++i) {
        asm volatile("" : "+r"(probabilities[i])::"memory");
      }
    }
    if (chunk == kChunks / 2 - 1) hand_over();
    SchedulingFence();
  }
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_SOFTMAX_CUH_
