// The shape of a thread block of the Hopper backward kernels and where everything lies in its
// shared memory.
//
// Both passes are one kernel with the roles exchanged. A work item is some rows that stay: keys
// (dk, dv) or query rows (dq); tiles of 64 rows of the other side move past them. A block is a
// producer warpgroup and kConsumers consumer warpgroups, each with 64 of the item's rows.
//
//             rows that stay   tiles that move   results
//   kDkDv     k, v             q, d_o            dk, dv
//   kDq       q, d_o           k, v              dq
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_LAYOUT_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_LAYOUT_CUH_

#include <cstdint>

#include "kernels/cuda/backward_params.h"
#include "kernels/cuda/hopper/hopper_backward.h"
#include "kernels/cuda/hopper/layout.cuh"

namespace flashbias::cuda::hopper {

enum class BackwardPass { kDkDv, kDq };

// A named barrier of all consumers (1 to 9 are those of the forward kernel).
inline constexpr int kSumsBarrier = 10;

inline constexpr int kTileRows = 64;  // of a tile that moves, and of a consumer

// What the producer tells the others of one work item; sequence < 0: there are no more.
struct BackwardItem {
  int sequence;
  int begin;  // first row that stays
  int q_len;
  int kv_len;
  int diagonal;
  int window_diagonal;
  int causal;
  int head_dim;
  int64_t exact_diagonal;
  int out_heads;          // of the results, whose rows are out_heads * head_dim elements apart
  float scale_log2;       // softmax_scale * log2(e)
  float slope_log2;       // kDq: of the item's head
  float slope;            // kDq
  float dp_factor;        // of <d_o, v>, so that the product with probabilities is dS * 2^f
  float score_factor;     // of dk or dq, when they are done
  float value_factor;     // of dv
  float slope_factor;     // of the slope's gradient
  void* score_gradient;   // row 0 of dk or dq of this head
  void* value_gradient;   // row 0 of dv of this head
  float* slope_gradient;  // kDq: of this item; null: not wanted
  KeyLimits limits[kMaxConsumers];  // kDq: of each consumer's rows
};

// What the producer tells of one tile.
struct alignas(16) BackwardTile {
  int first;         // row, or kEndOfItem
  float slope_log2;  // kDkDv: of its head
  float slope;       // kDkDv
  KeyLimits limits;  // kDkDv: of its rows
};

// kDq: what a consumer's lane needs of a query row.
struct alignas(16) StayingRow {
  int left;     // Reference::left
  int right;    // Reference::right
  float shift;  // log2: less the row's lse, with the factor of probabilities
  float delta;  // -delta * dp_factor
};

// Offsets are bytes from the start of shared memory.
template <int kHeadDim, BackwardPass kPass>
struct BackwardLayout {
  static constexpr bool kDkDv = kPass == BackwardPass::kDkDv;
  static constexpr int kItemRows = kDkDv ? KvItemKeys(kHeadDim) : QItemRows(kHeadDim);
  static constexpr int kConsumers = kItemRows / kTileRows;
  static_assert(kConsumers <= kMaxConsumers);
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? (kDkDv ? 160 : 152) : 224;
  static constexpr int kProducerRegisters =
      kLaunchRegisters * (kConsumers + 1) - kConsumerRegisters * kConsumers;
  static_assert(kProducerRegisters >= 24 && kProducerRegisters % 8 == 0);
  // Whether there are registers for a tile's operands while the scores of the next one are under
  // way.
  static constexpr bool kOverlaps = kConsumers <= 3 && !(kDkDv && kHeadDim == 128);
  static constexpr int kStages = kHeadDim == 128 ? 2 : 4;
  static constexpr int kBuffers = 2;

  static constexpr Swizzle kSwizzle = kHeadDim == 32 ? Swizzle::k64Bytes : Swizzle::k128Bytes;
  static constexpr int kPanelColumns = kHeadDim == 32 ? 32 : 64;
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kRowBytes = kPanelColumns * 2;
  static constexpr int kGroupBytes = 8 * kRowBytes;
  static constexpr int kPanelBytes = kTileRows * kRowBytes;
  static constexpr int kTileBytes = kPanels * kPanelBytes;  // 64 rows of one tensor

  static constexpr int kStatsBytes = kDkDv ? kTileRows * sizeof(RowStats) : 0;
  // For each pair of columns: shifts left, deltas; then shifts right.
  static constexpr int kShiftBytes = kDkDv ? kTileRows * 12 : 0;

  // [kBuffers][kConsumers][2 tensors], [kStages][2 tensors]
  static constexpr int kStayingOffset = 0;
  static constexpr int kMovingOffset = kBuffers * kConsumers * 2 * kTileBytes;
  static constexpr int kStatsOffset = kMovingOffset + kStages * 2 * kTileBytes;
  static constexpr int kShiftOffset = kStatsOffset + kStages * kStatsBytes;
  static constexpr int kRowsOffset = kShiftOffset + kStages * kShiftBytes;
  static constexpr int kRowsBytes = kDkDv ? 0 : kItemRows * sizeof(StayingRow);
  static constexpr int kItemOffset = kRowsOffset + kBuffers * kRowsBytes;
  static constexpr int kItemBytes = 192;
  static constexpr int kTileInfoOffset = kItemOffset + kBuffers * kItemBytes;
  static constexpr int kSlopeSumsOffset = kTileInfoOffset + kStages * sizeof(BackwardTile);
  static constexpr int kBarriersOffset = kSlopeSumsOffset + 64;
  static constexpr int kNumBarriers = 3 * kStages + 2 * kBuffers;
  static constexpr int kSharedBytes = kBarriersOffset + kNumBarriers * 8;
  static_assert(sizeof(BackwardItem) <= kItemBytes);
  static_assert(kSharedBytes <= 227 * 1024, "a block gets at most 227 KiB");

  // Barriers. Of a stage: the row statistics are there (kDkDv), everything is there, all have read.
  __device__ static uint32_t StatsFull(uint32_t base, int stage) {
    return base + kBarriersOffset + stage * 8;
  }
  __device__ static uint32_t TileFull(uint32_t base, int stage) {
    return base + kBarriersOffset + (kStages + stage) * 8;
  }
  __device__ static uint32_t TileEmpty(uint32_t base, int stage) {
    return base + kBarriersOffset + (2 * kStages + stage) * 8;
  }
  __device__ static uint32_t ItemFull(uint32_t base, int buffer) {
    return base + kBarriersOffset + (3 * kStages + buffer) * 8;
  }
  __device__ static uint32_t ItemEmpty(uint32_t base, int buffer) {
    return base + kBarriersOffset + (3 * kStages + kBuffers + buffer) * 8;
  }

  // Offsets of 64 rows of one of the two tensors: 0: k or q, 1: v or d_o.
  __device__ static uint32_t Staying(int buffer, int consumer, int tensor) {
    return kStayingOffset + ((buffer * kConsumers + consumer) * 2 + tensor) * kTileBytes;
  }
  __device__ static uint32_t Moving(int stage, int tensor) {
    return kMovingOffset + (stage * 2 + tensor) * kTileBytes;
  }
  __device__ static BackwardItem* Item(char* shared, int buffer) {
    return reinterpret_cast<BackwardItem*>(shared + kItemOffset + buffer * kItemBytes);
  }
  __device__ static BackwardTile* Tile(char* shared, int stage) {
    return reinterpret_cast<BackwardTile*>(shared + kTileInfoOffset) + stage;
  }
  __device__ static StayingRow* Rows(char* shared, int buffer) {
    return reinterpret_cast<StayingRow*>(shared + kRowsOffset + buffer * kRowsBytes);
  }
  __device__ static const RowStats* Stats(char* shared, int stage) {
    return reinterpret_cast<const RowStats*>(shared + kStatsOffset + stage * kStatsBytes);
  }
  // [kTileRows / 2] {left, left, delta, delta}
  __device__ static float4* LeftShifts(char* shared, int stage) {
    return reinterpret_cast<float4*>(shared + kShiftOffset + stage * kShiftBytes);
  }
  // [kTileRows / 2] {right, right}
  __device__ static float2* RightShifts(char* shared, int stage) {
    return reinterpret_cast<float2*>(shared + kShiftOffset + stage * kShiftBytes + kTileRows * 8);
  }
  // [kConsumers * 4]
  __device__ static float* SlopeSums(char* shared) {
    return reinterpret_cast<float*>(shared + kSlopeSumsOffset);
  }
};

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_LAYOUT_CUH_
