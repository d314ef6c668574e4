// Which tiles of query rows the pass over keys visits for an item of keys.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_QUERY_TILES_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_QUERY_TILES_CUH_

#include <cstdint>

#include "kernels/cuda/backward_params.h"
#include "kernels/cuda/portable/backward_tile.cuh"

namespace flashbias::cuda::portable {

struct QueryTile {
  int head;
  int tile;  // rows tile * kTileRows and on
};

// The query tiles of a group of heads, in order, of which any row may need any of the keys
// first_key .. last_key. Every warp walks for itself, all of its lanes together.
class QueryTiles {
 public:
  __device__ QueryTiles(const BackwardSequence& sequence, int kv_head, int first_key, int last_key)
      : sequence_(sequence),
        first_key_(first_key),
        last_key_(last_key),
        head_(kv_head * HeadsPerKvHead() - 1),
        last_head_(head_ + HeadsPerKvHead()) {}

  // False at the end.
  __device__ bool Next(QueryTile* next) {
    while (needed_ == 0) {
      window_ += 32;
      if (window_ > last_tile_) {
        if (head_ == last_head_) return false;
        ++head_;
        FindRange();
      }
      LookAtWindow();
    }
    *next = {head_, window_ + __ffs(static_cast<int>(needed_)) - 1};
    needed_ &= needed_ - 1;
    return true;
  }

 private:
  __device__ int HeadsPerKvHead() const {
    return sequence_.forward.num_q_heads / sequence_.forward.num_kv_heads;
  }

  // The tiles of head_ that mask and reach leave: from window_ to last_tile_.
  __device__ void FindRange() {
    const SequenceParams& forward = sequence_.forward;
    int64_t first = 0;
    int64_t last = int64_t{forward.q_len} - 1;
    if (forward.causal != 0) first = max(first, int64_t{first_key_} - forward.diagonal);
    last = min(last, int64_t{last_key_} - forward.window_diagonal);
    if (sequence_.reach != nullptr) {
      const int32_t* reach = sequence_.reach + 2 * head_;
      first = max(first, int64_t{first_key_} - forward.diagonal - reach[1] + 1);
      last = min(last, int64_t{last_key_} - forward.diagonal + reach[0] - 1);
    }
    window_ = 0;
    last_tile_ = -1;
    if (first > last) return;
    window_ = static_cast<int>(first / kTileRows);
    last_tile_ = static_cast<int>(last / kTileRows);
  }

  // 32 tiles at once, so that one access to memory is waited for.
  __device__ void LookAtWindow() {
    const int tile = window_ + Lane();
    bool needed = tile <= last_tile_;
    if (needed && sequence_.limits != nullptr) {
      const int64_t tiles = sequence_.row_stride / kLimitRows;
      const KeyLimits limits = sequence_.limits[head_ * tiles + tile];
      needed = last_key_ > limits.left && first_key_ < limits.right;
    }
    needed_ = __ballot_sync(~0u, needed);
  }

  const BackwardSequence& sequence_;
  const int first_key_;
  const int last_key_;
  int head_;
  const int last_head_;
  int window_ = 0;
  int last_tile_ = -1;
  unsigned needed_ = 0;  // of the tiles from window_ on
};

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_QUERY_TILES_CUH_
