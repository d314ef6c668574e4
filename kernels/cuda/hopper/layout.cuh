// The shape of a thread block of the Hopper kernel and where everything lies in its shared memory.
//
// A block is a producer warpgroup and kConsumers consumer warpgroups. Each consumer computes 64
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
inline constexpr int kMaxConsumers = 4;
inline constexpr int kEndOfItem = -1;     // in place of a tile's first key
inline constexpr int kNoLimit = 1 << 30;  // beyond every key

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
  float keys_per_log2;  // 1 / slope_log2: of distance, where anything may be dropped
  // log2 of what a side may drop, less that of the geometric sum.
  float log2_budget;
  int64_t exact_diagonal;
  const float* norms_before;  // running maxima over norm tiles 0 .. t; null: drop nothing
  const float* norms_after;   // over norm tiles t .. last
  void* o;                    // row 0 of this head
  float* lse;                 // row 0 of this head; null: not wanted
  // Keys that a consumer still needs lie strictly between these; the producer reads them to stop.
  int left_limit[kMaxConsumers];
  int right_limit[kMaxConsumers];
};

// What one consumer needs to know of an item's tiles, from its first tile on. In shared memory,
// where all lanes read the same: in registers that would not be known to be uniform.
struct alignas(16) TileBounds {
  // Tiles whose first key is within these lie on the left of every row, need no mask, and are
  // needed.
  int plain_first;
  int plain_last;
  int settled_before;  // plain tiles that begin before it need no new maxima (kSettledGrowth)
  int next_check;      // after so many computed tiles the limits are worth another look
  int left_limit;      // keys at or before it are negligible
  int right_limit;     // keys at or after it are negligible
  int first_key;       // of any row
  int last_key;        // of any row; -1: no rows
  int interior_begin;  // tiles within [interior_begin, interior_end] need no mask
  int interior_end;
  int cut_first;  // from this tile on the causal mask alone cuts, and every row's reference is its
                  // last key
  int first_row;  // key row at which the first query row stands
  int last_row;
};

// What a lane keeps of its two rows, out of registers.
struct alignas(16) LaneRows {
  int left0;  // Reference::left
  int left1;
  // |q| in log2 units of a logit a unit of |k|, rounded up.
  float reach0;
  float reach1;
};

// Offsets are bytes from the start of shared memory.
template <int kHeadDim>
struct Layout {
  static constexpr int kQueryRows = QueryTileRows(kHeadDim);    // of a work item
  static constexpr int kQueryBoxRows = QueryBoxRows(kHeadDim);  // of one load
  static constexpr int kConsumers = kQueryRows / kRowsPerConsumer;
  static_assert(kConsumers <= kMaxConsumers);
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kStartThreads =
      kConsumers * kWarpgroupThreads + 32;  // and the producer's warp
  // Registers a thread: the launch gives all alike, then the producer's go to the consumers.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kConsumerRegisters = kHeadDim == 32 ? 112 : (kHeadDim == 64 ? 152 : 232);
  static constexpr int kProducerRegisters =
      kLaunchRegisters * (kConsumers + 1) - kConsumerRegisters * kConsumers;
  static_assert(kProducerRegisters >= 24 && kProducerRegisters % 8 == 0);
  // Whether a consumer has registers for the scores of a tile while the values of the one before
  // are under way.
  static constexpr bool kScoresAhead = kHeadDim == 128;
  static constexpr int kStages = kHeadDim == 128 ? 2 : 4;
  static constexpr int kBuffers = 2;  // of items: queries and what is known of them

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

  // The bias's ramp: 16 columns of keys, twice (for keys on the left and on the right of the rows),
  // shared; of queries, in each buffer each consumer its own.
  static constexpr int kRampBytes = kKeyTileKeys * 32;
  static constexpr int kRampQueryBytes = kRowsPerConsumer * 32;

  static constexpr int kQueryOffset = 0;
  static constexpr int kKeyOffset = kBuffers * kConsumers * kQueryBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * kTileBytes;
  static constexpr int kOnesOffset = kValueOffset + kStages * kTileBytes;
  static constexpr int kRampOffset = kOnesOffset + kOnesBytes;
  static constexpr int kRampQueryOffset = kRampOffset + 2 * kRampBytes;
  static constexpr int kLaneRowsOffset = kRampQueryOffset + kBuffers * kConsumers * kRampQueryBytes;
  static constexpr int kInfoOffset =
      kLaneRowsOffset + kConsumers * kWarpgroupThreads * sizeof(LaneRows);
  static constexpr int kInfoBytes = 192;
  static constexpr int kVoteBytes = 48;  // of a consumer
  static constexpr int kBoundsOffset = kInfoOffset + kBuffers * kInfoBytes;
  static constexpr int kVotesOffset = kBoundsOffset + kBuffers * kMaxConsumers * sizeof(TileBounds);
  static constexpr int kTilesOffset = kVotesOffset + kMaxConsumers * kVoteBytes;
  static constexpr int kBarriersOffset = kTilesOffset + 32;
  static constexpr int kValueBarriersOffset =
      kBarriersOffset + (kScoresAhead ? (2 * kStages + 3 * kBuffers) * 8 : 0);
  static constexpr int kSharedBytes = kBarriersOffset + 128;
  static_assert(sizeof(ItemInfo) <= kInfoBytes);
  static_assert(kStages * 4 <= 32);
  static_assert(((kScoresAhead ? 4 : 2) * kStages + 3 * kBuffers) * 8 <= 128);

  static_assert(kSharedBytes <= 227 * 1024, "a block gets at most 227 KiB");

  // Barriers, as shared-memory addresses; `base` is the start of shared memory. Of a stage: keys
  // and which tile it is, and values, which are one where kScoresAhead is false.
  __device__ static uint32_t KeysFull(uint32_t base, int stage) {
    return base + kBarriersOffset + stage * 8;
  }
  __device__ static uint32_t KeysEmpty(uint32_t base, int stage) {
    return base + kBarriersOffset + (kStages + stage) * 8;
  }
  __device__ static uint32_t ValuesFull(uint32_t base, int stage) {
    return base + kValueBarriersOffset + stage * 8;
  }
  __device__ static uint32_t ValuesEmpty(uint32_t base, int stage) {
    return base + kValueBarriersOffset + (kStages + stage) * 8;
  }
  // An item is described; its queries follow.
  __device__ static uint32_t ItemFull(uint32_t base, int buffer) {
    return base + kBarriersOffset + (2 * kStages + buffer) * 8;
  }
  __device__ static uint32_t ItemEmpty(uint32_t base, int buffer) {
    return base + kBarriersOffset + (2 * kStages + kBuffers + buffer) * 8;
  }
  __device__ static uint32_t QueriesFull(uint32_t base, int buffer) {
    return base + kBarriersOffset + (2 * kStages + 2 * kBuffers + buffer) * 8;
  }

  __device__ static ItemInfo* Info(char* shared, int buffer) {
    return reinterpret_cast<ItemInfo*>(shared + kInfoOffset + buffer * kInfoBytes);
  }
  __device__ static TileBounds* Bounds(char* shared, int buffer, int consumer) {
    return reinterpret_cast<TileBounds*>(shared + kBoundsOffset) + buffer * kMaxConsumers +
           consumer;
  }
  // An offset.
  __device__ static uint32_t RampQueries(int buffer, int consumer) {
    return kRampQueryOffset + (buffer * kConsumers + consumer) * kRampQueryBytes;
  }
  __device__ static LaneRows* Rows(char* shared, int consumer) {
    return reinterpret_cast<LaneRows*>(shared + kLaneRowsOffset) + consumer * kWarpgroupThreads +
           threadIdx.x % kWarpgroupThreads;
  }
  // [3][4]: a word for each warp: left limits, right limits, whether maxima are settled.
  __device__ static int* Votes(char* shared, int consumer) {
    return reinterpret_cast<int*>(shared + kVotesOffset + consumer * kVoteBytes);
  }
  // [kStages]: the first key of the tile in each stage, or kEndOfItem.
  __device__ static int* Tiles(char* shared) {
    return reinterpret_cast<int*>(shared + kTilesOffset);
  }
};

// A stage or buffer of a ring, and the parity of its current round.
template <int kSlots>
class RingPosition {
 public:
  __device__ int slot() const { return slot_; }
  __device__ uint32_t parity() const { return parity_; }
  __device__ void Advance() {
    if (++slot_ == kSlots) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }
  __device__ RingPosition Next() const {
    RingPosition next = *this;
    next.Advance();
    return next;
  }

 private:
  int slot_ = 0;
  uint32_t parity_ = 0;
};

__device__ __forceinline__ char* SharedMemory() {
  extern __shared__ __align__(1024) char shared[];
  return shared;
}

// Named barriers, of which a block has 16: one that starts the block, and for each of its consumers
// one that hands the token to it and one that joins its warps.
inline constexpr int kStartBarrier = 9;

__device__ __forceinline__ int TokenBarrier(int consumer) { return 1 + consumer; }

__device__ __forceinline__ void JoinConsumer(int consumer) {
  NamedBarrierSync(5 + consumer, kWarpgroupThreads);
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_LAYOUT_CUH_
