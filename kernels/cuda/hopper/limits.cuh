// How far a consumer still has to walk: skipping with a proof (kernels/skip_table.h), decided while
// it walks outwards, from the log-sum-exp of the keys that it has seen.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_LIMITS_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_LIMITS_CUH_

#include "kernels/cuda/hopper/row_state.cuh"
#include "kernels/cuda/hopper/softmax.cuh"

namespace flashbias::cuda::hopper {

// |q| of one of a consumer's rows, rounded up; all lanes of a quad get it.
template <typename Element, int kHeadDim>
__device__ __forceinline__ float QueryNorm(const char* queries, int row) {
  using L = Layout<kHeadDim>;
  float squares = 0;
  // The swizzle moves 16-byte pieces within a row, so a sum over the row need not undo it.
#pragma unroll
  for (int panel = 0; panel < L::kPanels; ++panel) {
    for (int piece = threadIdx.x % 4; piece < L::kRowBytes / 16; piece += 4) {
      const uint4 raw = *reinterpret_cast<const uint4*>(queries + panel * L::kQueryPanelBytes +
                                                        row * L::kRowBytes + piece * 16);
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Element two[2];
        memcpy(two, &words[i], 4);
        const auto x = static_cast<float>(two[0]);
        const auto y = static_cast<float>(two[1]);
        squares = fmaf(x, x, fmaf(y, y, squares));
      }
    }
  }
  return sqrtf(QuadSum(squares) + kVanishedSquares) * (1.0f + 2e-5f);
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

// Tightens the limits of one consumer after `tile`, and says when to look again. All its lanes call
// it together, each with its rows' log2-sum-exp of what was computed.
template <int kHeadDim>
__device__ __forceinline__ void UpdateLimits(char* shared, int consumer, int slot, int tile,
                                             int computed, float lse0, float lse1) {
  using L = Layout<kHeadDim>;
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
    if (threadIdx.x % 32 == 0) votes[warp] = left;
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
    TileBounds* const bounds = L::Bounds(shared, consumer);
    int tiles_left = 0;
    if (on_left && tile > 0) {
      const int left =
          max(bounds->left_limit, min(min(votes[0], votes[1]), min(votes[2], votes[3])));
      bounds->left_limit = left;
      bounds->plain_first = max(bounds->plain_first, left - (kKeyTileKeys - 2));
      *const_cast<volatile int*>(&info.left_limit[consumer]) = left;
      tiles_left = (tile - max(left, bounds->first_key)) / kKeyTileKeys;
    }
    if (has_right) {
      // What the bound covers begins at the frontier: before it there may be tiles on this
      // consumer's right that the leftward walk has yet to reach.
      const int right =
          max(right_frontier,
              min(bounds->right_limit, max(max(votes[4], votes[5]), max(votes[6], votes[7]))));
      bounds->right_limit = right;
      *const_cast<volatile int*>(&info.right_limit[consumer]) = right;
      tiles_left += (min(right, bounds->last_key) - right_frontier) / kKeyTileKeys;
    }
    // The sums hardly grow after the first half of the walk, and the last tiles are not worth it.
    bounds->next_check = tiles_left > 3 ? computed + tiles_left / 2 : kNoLimit;
  }
  JoinConsumer(consumer);
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_LIMITS_CUH_
