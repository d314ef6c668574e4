// The shape of a thread block of the Hopper kernel and where everything lies in its shared memory.
//
// A block is a producer and kConsumers consumer warpgroups; each consumer computes 64
// query rows of the block's work item against tiles of kKeyTileKeys keys that all of them share.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_LAYOUT_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_LAYOUT_CUH_

#include <cstdint>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/cuda/hopper/ptx.cuh"

namespace flashbias::cuda::hopper {

inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kRowsPerConsumer = 64;
inline constexpr int kEndOfItem = -1;  // in place of a tile's first key
inline constexpr int kNoLimit = 1 << 30;

// Named barriers: 1 .. 4 hand the token to a consumer, 5 .. 8 join one consumer's warps.
inline constexpr int kTokenBarrier = 1;
inline constexpr int kConsumerBarrier = 5;

__device__ __forceinline__ void JoinConsumer(int consumer) {
  NamedBarrierSync(kConsumerBarrier + consumer, kWarpgroupThreads);
}

// What the producer tells the consumers of one work item; sequence < 0: there are no more.
struct ItemInfo {
  int sequence;
  int q_begin;
  int q_len;
  int kv_len;
  int diagonal;
  int window_diagonal;
  int causal;
  int first_tile;  // where the walk starts: leftwards from it, then rightwards
  int num_q_heads;
  int head_dim;
  int problem;
  float scale_log2;       // softmax_scale * log2(e)
  float scores_per_log2;  // its inverse
  float slope_log2;       // slope * log2(e)
  float slope_in_scores;  // slope / softmax_scale: the slope in units of <q, k>
  float slope;
  // log2 of what a side may drop, less that of the geometric sum; -infinity: drop nothing.
  float log2_budget;
  int64_t exact_diagonal;
  const float* norms_before;  // running maxima over norm tiles 0 .. t; null: drop nothing
  const float* norms_after;   // over norm tiles t .. last
  void* o;                    // row 0 of this head
  float* lse;                 // row 0 of this head; null: not wanted
  // Keys that a consumer still needs lie strictly between these; the producer reads them to stop.
  int left_limit[4];
  int right_limit[4];
};

// Constant over an item for one consumer; read by all of its lanes at every tile.
struct alignas(16) TileBounds {
  int first_key;       // of any row
  int last_key;        // of any row; below first_key: none
  int interior_begin;  // tiles within [interior_begin, interior_end] need no mask
  int interior_end;
  int first_row;  // key row at which the first query row stands
  int last_row;
  int left_limit;   // keys at or before it are negligible
  int right_limit;  // keys at or after it are negligible
};

template <int kHeadDim>
struct Layout {
  static constexpr int kQueryRows = QueryTileRows(kHeadDim);  // of a work item
  static constexpr int kConsumers = kQueryRows / kRowsPerConsumer;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  // Registers a thread: the launch gives all alike, then the producer's go to the consumers.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kConsumerRegisters = kHeadDim == 32 ? 112 : (kHeadDim == 64 ? 152 : 232);
  static constexpr int kProducerRegisters =
      kLaunchRegisters * (kConsumers + 1) - kConsumerRegisters * kConsumers;
  static_assert(kProducerRegisters >= 24 && kProducerRegisters % 8 == 0);
  static constexpr int kStages = kHeadDim == 32 ? 5 : (kHeadDim == 64 ? 4 : 2);
  static constexpr int kQueryBuffers = 2;

  static constexpr Swizzle kSwizzle = kHeadDim == 32 ? Swizzle::k64Bytes : Swizzle::k128Bytes;
  static constexpr int kPanelColumns = kHeadDim == 32 ? 32 : 64;
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kRowBytes = kPanelColumns * 2;  // of a row in a panel
  static constexpr int kGroupBytes = 8 * kRowBytes;    // 8 rows
  static constexpr int kQueryPanelBytes = kRowsPerConsumer * kRowBytes;
  static constexpr int kKeyPanelBytes = kKeyTileKeys * kRowBytes;
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes;  // one consumer's
  static constexpr int kTileBytes = kPanels * kKeyPanelBytes;     // keys or values

  // Row sums come from eight columns of ones beside the values, where a tensor instruction has room
  // for them; at head_dim 128 additions are cheaper.
  static constexpr bool kSumsByOnes = kHeadDim < 128;
  static constexpr int kValueColumns = kHeadDim + (kSumsByOnes ? 8 : 0);
  static constexpr int kOnesBytes = kSumsByOnes ? kKeyPanelBytes : 0;

  // The bias's ramp: 16 columns of keys, shared; of queries, each consumer its own, twice (for keys
  // on the left and on the right).
  static constexpr int kRampBytes = kKeyTileKeys * 32;
  static constexpr int kRampQueryBytes = kRowsPerConsumer * 32;

  static constexpr int kQueryOffset = 0;
  static constexpr int kKeyOffset = kQueryBuffers * kConsumers * kQueryBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * kTileBytes;
  static constexpr int kOnesOffset = kValueOffset + kStages * kTileBytes;
  static constexpr int kRampOffset = kOnesOffset + kOnesBytes;
  static constexpr int kRampQueryOffset = kRampOffset + kRampBytes;
  static constexpr int kLaneRowsOffset = kRampQueryOffset + 2 * kConsumers * kRampQueryBytes;
  static constexpr int kInfoOffset = kLaneRowsOffset + kConsumers * kWarpgroupThreads * 8;
  static constexpr int kBoundsOffset = kInfoOffset + 2 * 256;
  static constexpr int kVotesOffset = kBoundsOffset + 4 * sizeof(TileBounds);
  static constexpr int kTilesOffset = kVotesOffset + 4 * 32;
  static constexpr int kBarriersOffset = kTilesOffset + 32;
  static constexpr int kSharedBytes = kBarriersOffset + 128;
  static_assert(sizeof(ItemInfo) <= 256);
  static_assert(kStages * 4 <= 32);
  static_assert((2 * kStages + 2 * kQueryBuffers) * 8 <= 128);
  static_assert(kSharedBytes <= 227 * 1024, "a block gets at most 227 KiB");

  // Barriers, as shared-memory addresses; `base` is the start of shared memory.
  __device__ static uint32_t TileFull(uint32_t base, int stage) {
    return base + kBarriersOffset + stage * 8;
  }
  __device__ static uint32_t TileEmpty(uint32_t base, int stage) {
    return base + kBarriersOffset + (kStages + stage) * 8;
  }
  __device__ static uint32_t QueryFull(uint32_t base, int buffer) {
    return base + kBarriersOffset + (2 * kStages + buffer) * 8;
  }
  __device__ static uint32_t QueryEmpty(uint32_t base, int buffer) {
    return base + kBarriersOffset + (2 * kStages + kQueryBuffers + buffer) * 8;
  }
  __device__ static ItemInfo* Info(char* shared, int buffer) {
    return reinterpret_cast<ItemInfo*>(shared + kInfoOffset + buffer * 256);
  }
  __device__ static TileBounds* Bounds(char* shared, int consumer) {
    return reinterpret_cast<TileBounds*>(shared + kBoundsOffset) + consumer;
  }
  // [2]: what a lane keeps of its two rows, out of registers.
  __device__ static int2* LaneRows(char* shared) {
    return reinterpret_cast<int2*>(shared + kLaneRowsOffset) + threadIdx.x;
  }
  // [8]: one word a side and warp.
  __device__ static int* Votes(char* shared, int consumer) {
    return reinterpret_cast<int*>(shared + kVotesOffset) + consumer * 8;
  }
  // [kStages]: the first key of the tile in each stage, or kEndOfItem.
  __device__ static int* Tiles(char* shared) {
    return reinterpret_cast<int*>(shared + kTilesOffset);
  }
};

// A stage or buffer of a ring, and the parity of its current round.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void Advance() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_LAYOUT_CUH_
