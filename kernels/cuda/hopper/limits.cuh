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
  return sqrtf(QuadSum(squares)) * (1.0f + 1e-5f);
}

// Distance in keys, from the row's reference, at and beyond which a side is negligible; half of
// kNoLimit: never. The slack covers fp32 rounding of norms, logits and sums; NaN keeps everything.
__device__ __forceinline__ int NegligibleFrom(const ItemInfo& info, float query_norm,
                                              float key_norm, float lse) {
  const float logit_at_most = info.scale_log2 * query_norm * key_norm * (1.0f + 1e-4f) + 2e-3f;
  const float distance = (logit_at_most - lse - info.log2_budget) / info.slope_log2;
  if (!(distance < static_cast<float>(kNoLimit / 2))) return kNoLimit / 2;
  return static_cast<int>(fmaxf(ceilf(distance * (1.0f + 1e-6f)), 0.0f)) + 1;
}

// Tightens the limits of one consumer. All its lanes call it together, with the frontiers of what
// the block has walked, the number of tiles seen, a power of two, and each lane's rows'
// log2-sum-exp.
template <typename Element, int kHeadDim>
__device__ __noinline__ void UpdateLimits(char* shared, int consumer, int query_slot, int tile,
                                          float lse0, float lse1) {
  using L = Layout<kHeadDim>;
  ItemInfo& info = *L::Info(shared, query_slot);
  // The tables of key norms are the previous launch's.
  WaitForPreviousLaunch();
  const char* const queries =
      shared + L::kQueryOffset + (query_slot * L::kConsumers + consumer) * L::kQueryBytes;
  const int lane_row = threadIdx.x % kWarpgroupThreads / 32 * 16 + threadIdx.x % 32 / 4;
  const int row = info.q_begin + consumer * kRowsPerConsumer + lane_row;
  const float norm0 = QueryNorm<Element, kHeadDim>(queries, lane_row);
  const float norm1 = QueryNorm<Element, kHeadDim>(queries, lane_row + 8);
  const Reference reference0 = ReferenceOfRow(info, KeysOfRow(info, row));
  const Reference reference1 = ReferenceOfRow(info, KeysOfRow(info, row + 8));
  // What lies beyond the tiles walked so far; the left side is done when the right one is walked.
  const bool on_left = tile <= info.first_tile;
  const int left_frontier = on_left ? tile : 0;
  const int right_frontier = (on_left ? info.first_tile : tile) + kKeyTileKeys;
  int left = -kNoLimit;
  int right = kNoLimit;
  if (left_frontier > 0) {
    const float keys = info.norms_before[left_frontier / kNormTileKeys - 1];
    left = __reduce_min_sync(~0u, min(reference0.left - NegligibleFrom(info, norm0, keys, lse0),
                                      reference1.left - NegligibleFrom(info, norm1, keys, lse1)));
  }
  if (info.causal == 0 && right_frontier < info.kv_len) {
    const float keys = info.norms_after[right_frontier / kNormTileKeys];
    right = __reduce_max_sync(~0u, max(reference0.right + NegligibleFrom(info, norm0, keys, lse0),
                                       reference1.right + NegligibleFrom(info, norm1, keys, lse1)));
  }
  int* const votes = L::Votes(shared, consumer);
  const int warp = threadIdx.x % kWarpgroupThreads / 32;
  if (threadIdx.x % 32 == 0) {
    votes[warp] = left;
    votes[4 + warp] = right;
  }
  JoinConsumer(consumer);
  if (threadIdx.x % kWarpgroupThreads == 0) {
    TileBounds* const bounds = L::Bounds(shared, consumer);
    left = max(bounds->left_limit, min(min(votes[0], votes[1]), min(votes[2], votes[3])));
    right = min(bounds->right_limit, max(max(votes[4], votes[5]), max(votes[6], votes[7])));
    bounds->left_limit = left;
    bounds->right_limit = right;
    *const_cast<volatile int*>(&info.left_limit[consumer]) = left;
    *const_cast<volatile int*>(&info.right_limit[consumer]) = right;
  }
  JoinConsumer(consumer);
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_LIMITS_CUH_
