// What one lane knows of its two query rows (lane / 4 and lane / 4 + 8 of its warp's 16).
//
// Logits are kept in log2 and relative. With c = scale log2(e), s = slope log2(e), and as a row's
// reference its admitted key with the largest bias (the nearest one where the slope is not
// negative, else the farthest),
//
//   x[i, j] = c <q_i, k_j> - s (|p_i - j| - |p_i - reference_i|)
//
// so that positions far from the keys cost no accuracy. On the left of the row that is
// c <q, k> - s (left - j), on its right c <q, k> - s (j - right).
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_ROW_STATE_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_ROW_STATE_CUH_

#include "kernels/cuda/hopper/layout.cuh"

namespace flashbias::cuda::hopper {

// Maxima start here: finite, so that differences are never NaN.
inline constexpr float kNoMaximum = -1e30f;

// The keys that query row `row` may see; first > last: none. Rows past the end count as the last.
struct VisibleKeys {
  int position;  // key row at which the query stands
  int first;
  int last;
};

template <typename Info>
__device__ __forceinline__ VisibleKeys KeysOfRow(const Info& info, int row) {
  row = min(row, info.q_len - 1);
  VisibleKeys keys;
  keys.position = row + info.diagonal;
  keys.first = max(0, row + info.window_diagonal);
  keys.last = info.causal != 0 ? min(info.kv_len - 1, keys.position) : info.kv_len - 1;
  return keys;
}

struct Reference {
  int left;   // biases of keys on the left are -slope (left - j)
  int right;  // of keys on the right -slope (j - right)
  int key;    // the reference itself
};

__device__ __forceinline__ Reference ReferenceOf(const VisibleKeys& keys, float slope) {
  const int nearest = min(max(keys.position, keys.first), keys.last);
  if (slope >= 0) return {nearest, nearest, nearest};
  // Not between its keys: all are on one side, and the farthest is the other end.
  if (keys.position > keys.last) return {keys.first, keys.first, keys.first};
  if (keys.position < keys.first) return {keys.last, keys.last, keys.last};
  if (keys.position - keys.first >= keys.last - keys.position) {
    return {keys.first, 2 * keys.position - keys.first, keys.first};
  }
  return {2 * keys.position - keys.last, keys.last, keys.last};
}

__device__ __forceinline__ Reference ReferenceOfRow(const ItemInfo& info, const VisibleKeys& keys) {
  return ReferenceOf(keys, info.slope);
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_ROW_STATE_CUH_
