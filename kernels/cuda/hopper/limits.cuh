// How far a consumer still has to walk: skipping with a proof (kernels/skip_table.h), decided while
// it walks outwards, from the log-sum-exp of the keys that it has seen.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_LIMITS_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_LIMITS_CUH_

#include "kernels/cuda/hopper/row_sums.cuh"

namespace flashbias::cuda::hopper {

// |q| of two of a consumer's rows, `row` and row + 8, rounded up; all lanes of a quad get them.
template <typename Element, int kHeadDim>
__device__ __forceinline__ float2 QueryNorms(const char* queries, int row) {
  using L = Layout<kHeadDim>;
  float squares[2] = {0, 0};
  // The swizzle moves 16-byte pieces within a row, so a sum over the row need not undo it.
#pragma unroll
  for (int panel = 0; panel < L::kPanels; ++panel) {
    for (int piece = threadIdx.x % 4; piece < L::kRowBytes / 16; piece += 4) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 raw = *reinterpret_cast<const uint4*>(
            queries + panel * L::kQueryPanelBytes + (row + 8 * half) * L::kRowBytes + piece * 16);
        const float2 a = UnpackPair<Element>(raw.x);
        const float2 b = UnpackPair<Element>(raw.y);
        const float2 c = UnpackPair<Element>(raw.z);
        const float2 d = UnpackPair<Element>(raw.w);
        const float even = fmaf(a.x, a.x, b.x * b.x) + fmaf(c.x, c.x, d.x * d.x);
        const float odd = fmaf(a.y, a.y, b.y * b.y) + fmaf(c.y, c.y, d.y * d.y);
        squares[half] += even + odd;
      }
    }
  }
  constexpr float kRoundUp = 1.0f + 2e-5f;
  return make_float2(SquareRoot(QuadSum(squares[0]) + kVanishedSquares) * kRoundUp,
                     SquareRoot(QuadSum(squares[1]) + kVanishedSquares) * kRoundUp);
}

// Distance in keys, from the row's reference, at and beyond which a side is negligible; kNoLimit:
// never. The slack covers the rounding of norms, logits and sums, of bf16 weights too; NaN keeps
// everything.
__device__ __forceinline__ int NegligibleFrom(const ItemInfo& info, float reach, float key_norm,
                                              float lse) {
  const float excess = fmaf(reach, key_norm, 5e-3f - info.log2_budget) - lse;
  const float distance = excess * info.keys_per_log2 * (1.0f + 1e-6f);
  if (!(distance < static_cast<float>(kNoLimit))) return kNoLimit;
  return __float2int_ru(fmaxf(distance, 0.0f)) + 1;
}

// How far a logit may exceed its row's maximum where no one looks (log2): its exponential is still
// finite in fp16, rounds as any other, and leaves the sums of its products with values in range.
inline constexpr float kSettledGrowth = 14.0f;

// Whether a row's keys from `distance` on cannot exceed its maximum by more than that. False for
// NaN.
__device__ __forceinline__ bool IsSettled(const ItemInfo& info, float reach, float key_norm,
                                          int distance, float maximum) {
  const float highest =
      fmaf(reach, key_norm, -info.slope_log2 * static_cast<float>(distance)) + 1e-2f;
  return highest <= maximum + kSettledGrowth;
}

// Tightens the limits of one consumer after `tile`, and says when to look again. All its lanes call
// it together.
template <int kHeadDim>
__device__ __forceinline__ void UpdateLimits(char* shared, int consumer, int slot, int tile,
                                             int computed, const RowSums<kHeadDim>& sums) {
  using L = Layout<kHeadDim>;
  // log2-sum-exp of what was computed.
  const float lse0 = sums.max0 + __log2f(SumOfRow(sums, 0));
  const float lse1 = sums.max1 + __log2f(SumOfRow(sums, 1));
  ItemInfo& info = *L::Info(shared, slot);
  const LaneRows rows = *L::Rows(shared, consumer);
  // What lies beyond the tiles walked so far; the left side is done when the right one is walked.
  const bool on_left = tile <= info.first_tile;
  const int right_frontier = (on_left ? info.first_tile : tile) + kKeyTileKeys;
  // The tables of key norms are the previous launch's.
  WaitForPreviousLaunch();
  int* const votes = L::Votes(shared, consumer);
  const int warp = threadIdx.x % kWarpgroupThreads / 32;
  if (on_left && tile > 0) {
    const float keys = info.norms_before[tile / kNormTileKeys - 1];
    const int left =
        __reduce_min_sync(~0u, min(rows.left0 - NegligibleFrom(info, rows.reach0, keys, lse0),
                                   rows.left1 - NegligibleFrom(info, rows.reach1, keys, lse1)));
    const bool settled =
        __all_sync(~0u, IsSettled(info, rows.reach0, keys, rows.left0 - tile, sums.max0) &&
                            IsSettled(info, rows.reach1, keys, rows.left1 - tile, sums.max1)) != 0;
    if (threadIdx.x % 32 == 0) {
      votes[warp] = left;
      votes[8 + warp] = settled ? 1 : 0;
    }
  }
  const bool has_right = info.causal == 0 && right_frontier < info.kv_len;
  if (has_right) {
    const int row = info.q_begin + consumer * kRowsPerConsumer + warp * 16 + threadIdx.x % 32 / 4;
    const int right0 = ReferenceOfRow(info, KeysOfRow(info, row)).right;
    const int right1 = ReferenceOfRow(info, KeysOfRow(info, row + 8)).right;
    const float keys = info.norms_after[right_frontier / kNormTileKeys];
    const int right =
        __reduce_max_sync(~0u, max(right0 + NegligibleFrom(info, rows.reach0, keys, lse0),
                                   right1 + NegligibleFrom(info, rows.reach1, keys, lse1)));
    if (threadIdx.x % 32 == 0) votes[4 + warp] = right;
  }
  JoinConsumer(consumer);
  if (threadIdx.x % kWarpgroupThreads == 0) {
    TileBounds* const bounds = L::Bounds(shared, slot, consumer);
    int tiles_left = 0;
    if (on_left && tile > 0) {
      const int left =
          max(bounds->left_limit, min(min(votes[0], votes[1]), min(votes[2], votes[3])));
      bounds->left_limit = left;
      bounds->plain_first = max(bounds->plain_first, left - (kKeyTileKeys - 2));
      if ((votes[8] & votes[9] & votes[10] & votes[11]) != 0) bounds->settled_before = tile;
      atomicExch(&info.left_limit[consumer], left);
      tiles_left = (tile - max(left, bounds->first_key)) / kKeyTileKeys;
    }
    if (has_right) {
      // What the bound covers begins at the frontier: before it there may be tiles on this
      // consumer's right that the leftward walk has yet to reach.
      const int right =
          max(right_frontier,
              min(bounds->right_limit, max(max(votes[4], votes[5]), max(votes[6], votes[7]))));
      bounds->right_limit = right;
      atomicExch(&info.right_limit[consumer], right);
      tiles_left += (min(right, bounds->last_key) - right_frontier) / kKeyTileKeys;
    }
    // The sums hardly grow after the first half of the walk, and the last tiles are not worth it.
    bounds->next_check = tiles_left > 3 ? computed + tiles_left / 2 : kNoLimit;
  }
  JoinConsumer(consumer);
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_LIMITS_CUH_
