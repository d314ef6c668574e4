// A query row of one head while its keys are walked: what it may see, its running softmax, and when
// it needs no more keys. A row lives in the four lanes 4 g .. 4 g + 3 of a warp (mma.cuh).
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_ROW_STATE_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_ROW_STATE_CUH_

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/portable/query_row.cuh"

namespace flashbias::cuda::portable {

// A query row of one head, and its running results. Logs are of base 2.
struct RowState {
  KeyRange keys;  // admitted; none where the tile has no such row
  float max;      // of the scores so far
  float sum;      // of this lane's probabilities
  float slope_log2;
  Bends bends;        // ALiBi
  float q_norm;       // |scale q|
  float log2_budget;  // what may be skipped; a NaN keeps every key
  // Low rank: the bias, natural log, that scores are relative to.
  double frame;
  int64_t phi_q_begin;
};

// Of a row at key row `position` that admits keys.
__device__ inline void PrepareAlibi(int position, float slope, float log_eps_per_side,
                                    RowState& row) {
  row.slope_log2 = ToFinite(slope * kLog2E);
  row.bends = BendsOf(row.keys, position, slope);
  if (slope > 0) row.log2_budget = log_eps_per_side * kLog2E + log2f(-expm1f(-slope));
}

// The direction that is left to walk.
enum class Side { kLeft, kRight };

// Whether the row needs none of the keys from `nearest` outwards, of which no |k| is more than
// max_norm (SkipBound in kernels/skip_table.h). `sum` is that of all lanes.
__device__ inline bool IsDone(const RowState& row, float sum, Side side, int nearest,
                              float max_norm) {
  const bool left = side == Side::kLeft;
  if (row.keys.empty() || (left ? row.keys.first > nearest : row.keys.last < nearest)) return true;
  const auto distance =
      static_cast<float>(left ? row.bends.left - nearest : nearest - row.bends.right);
  const float lse = row.max + log2f(sum);
  // Slack as in skip_table.h, for the rounding of norms, scores and sums.
  const float largest = row.q_norm * max_norm * (1.0f + 1e-4f) + 1e-3f * kLog2E;
  const float mass = largest - row.slope_log2 * distance - lse;
  return distance >= 0 && mass <= row.log2_budget;
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_ROW_STATE_CUH_
