// The producer of the backward kernels: one warp that takes work items and keeps the rings of items
// and tiles full, and for dk, dv another one that turns row statistics into what consumers add to
// scores.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_PRODUCER_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_PRODUCER_CUH_

#include "kernels/cuda/gradient_scale.cuh"
#include "kernels/cuda/hopper/backward_layout.cuh"
#include "kernels/cuda/hopper/row_state.cuh"
#include "kernels/cuda/softmax_math.cuh"

namespace flashbias::cuda::hopper {

template <typename Element, int kHeadDim, BackwardPass kPass>
class BackwardProducer {
 public:
  using L = BackwardLayout<kHeadDim, kPass>;

  __device__ explicit BackwardProducer(const BackwardParams& params) : params_(params) {}

  // REQUIRES: a whole warp.
  __device__ void Run() {
    // The rows pass ends before dk, dv begin, and so before dq does, which needs nothing of dk, dv
    // and runs beside the last of their blocks.
    if constexpr (L::kDkDv) {
      WaitForPreviousLaunch();
      if (lane_ == 0) StartNextLaunch();
    }
    const WorkItem* const items = L::kDkDv ? params_.kv_items : params_.q_items;
    const int num_items = L::kDkDv ? params_.num_kv_items : params_.num_q_items;
    unsigned* const counters = params_.next_item + (L::kDkDv ? 0 : 2);
    unsigned item = blockIdx.x;
    while (item < static_cast<unsigned>(num_items)) {
      const WorkItem work = items[item];
      Produce(work, params_.sequences[work.sequence],
              static_cast<const BackwardTensorMaps*>(params_.tensor_maps) + work.sequence);
      // Only now: whoever has most left to load claims last.
      if (lane_ == 0) item = FetchAdd(&counters[0], 1) + gridDim.x;
      item = __shfl_sync(~0u, item, 0);
    }
    // An empty item ends the others.
    MbarrierWait(L::ItemEmpty(base_, item_.slot()), item_.parity() ^ 1);
    if (lane_ == 0) {
      L::Item(shared_, item_.slot())->sequence = -1;
      MbarrierArrive(L::ItemFull(base_, item_.slot()));  // instead of the loads' expectation
    }
    MbarrierArrive(L::ItemFull(base_, item_.slot()));
    if (lane_ == 0) {
      // This launch must not end before the one before it.
      if constexpr (!L::kDkDv) WaitForPreviousLaunch();
      // The last block to leave makes the counters ready for the next launch.
      __threadfence();
      if (atomicAdd(&counters[1], 1u) == gridDim.x - 1) {
        counters[0] = 0;
        counters[1] = 0;
      }
    }
  }

 private:
  // First rows of the tiles that may be needed; first > last: none.
  struct TileSpan {
    int first;
    int last;
  };

  __device__ void Produce(const WorkItem& work, const BackwardSequence& sequence,
                          const BackwardTensorMaps* maps) {
    const SequenceParams& s = sequence.forward;
    if (work.sequence != mapped_sequence_) {
      if (lane_ < 4) AcquireTensorMap(&maps->q + lane_);
      __syncwarp();
      mapped_sequence_ = work.sequence;
    }
    const int group = s.num_q_heads / s.num_kv_heads;
    const int kv_head = L::kDkDv ? work.head : work.head / group;
    MbarrierWait(L::ItemEmpty(base_, item_.slot()), item_.parity() ^ 1);
    if (lane_ == 0) LoadStaying(work, maps);
    BackwardItem* const item = L::Item(shared_, item_.slot());
    const int gradient_scale =
        GradientScaleLog2(sequence.magnitudes, kv_head);  // 0 where there is none
    if (lane_ == 0) Describe(work, sequence, gradient_scale, item);
    if constexpr (!L::kDkDv) {
      const float slope = s.slopes != nullptr ? s.slopes[work.head] : 0.0f;
      PrepareRows(work, sequence, slope, gradient_scale);
    }
    MbarrierArrive(L::ItemFull(base_, item_.slot()));
    __syncwarp();
    if constexpr (L::kDkDv) {
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        LoadQueryTiles(work, sequence, head, maps);
      }
    } else {
      LoadKeyTiles(work, sequence, kv_head, maps);
    }
    LoadEnd();
    item_.Advance();
  }

  __device__ void LoadStaying(const WorkItem& work, const BackwardTensorMaps* maps) {
    const uint32_t full = L::ItemFull(base_, item_.slot());
    MbarrierArriveExpectBytes(full, L::kConsumers * 2 * L::kTileBytes);
    for (int consumer = 0; consumer < L::kConsumers; ++consumer) {
      const int row = work.q_begin + consumer * kTileRows;
      LoadRows(L::Staying(item_.slot(), consumer, 0), L::kDkDv ? &maps->k : &maps->q, full,
               work.head, row);
      LoadRows(L::Staying(item_.slot(), consumer, 1), L::kDkDv ? &maps->v : &maps->d_o, full,
               work.head, row);
    }
  }

  __device__ void LoadRows(uint32_t offset, const CUtensorMap* map, uint32_t barrier, int head,
                           int row) {
    for (int panel = 0; panel < L::kPanels; ++panel) {
      LoadBox(base_ + offset + panel * L::kPanelBytes, map, barrier, panel * L::kPanelColumns, head,
              row);
    }
  }

  __device__ void Describe(const WorkItem& work, const BackwardSequence& sequence,
                           int gradient_scale, BackwardItem* item) {
    const SequenceParams& s = sequence.forward;
    item->sequence = work.sequence;
    item->begin = work.q_begin;
    item->q_len = s.q_len;
    item->kv_len = s.kv_len;
    item->diagonal = s.diagonal;
    item->window_diagonal = s.window_diagonal;
    item->causal = s.causal;
    item->head_dim = s.head_dim;
    item->exact_diagonal = s.exact_diagonal;
    item->scale_log2 = s.softmax_scale * kLog2E;
    constexpr int kProbabilityScale = kProbabilityScaleLog2<Element>;
    item->dp_factor = PowerOfTwo(gradient_scale - kProbabilityScale);
    item->score_factor = s.softmax_scale * PowerOfTwo(-gradient_scale);
    item->value_factor = PowerOfTwo(-kProbabilityScale);
    item->slope_factor = PowerOfTwo(-gradient_scale);
    const int64_t offset = static_cast<int64_t>(work.head) * s.head_dim;
    if constexpr (L::kDkDv) {
      item->out_heads = s.num_kv_heads;
      item->score_gradient = static_cast<uint16_t*>(sequence.dk) + offset;
      item->value_gradient = static_cast<uint16_t*>(sequence.dv) + offset;
    } else {
      item->out_heads = s.num_q_heads;
      item->score_gradient = static_cast<uint16_t*>(sequence.dq) + offset;
      item->slope = s.slopes != nullptr ? s.slopes[work.head] : 0.0f;
      item->slope_log2 = item->slope * kLog2E;
      item->slope_gradient = sequence.dslope_partials == nullptr
                                 ? nullptr
                                 : sequence.dslope_partials + work.head * sequence.dslope_stride +
                                       work.q_begin / L::kItemRows;
    }
  }

  // kDq: what consumers need of the item's rows.
  __device__ void PrepareRows(const WorkItem& work, const BackwardSequence& sequence, float slope,
                              int gradient_scale) {
    const SequenceParams& s = sequence.forward;
    const float dp_factor = PowerOfTwo(gradient_scale - kProbabilityScaleLog2<Element>);
    const auto* const stats = reinterpret_cast<const float2*>(sequence.rows) +
                              static_cast<int64_t>(work.head) * sequence.row_stride;
    StayingRow* const rows = L::Rows(shared_, item_.slot());
#pragma unroll 2
    for (int n = lane_; n < L::kItemRows; n += 32) {
      const int row = work.q_begin + n;
      const float2 of_row =
          row < sequence.row_stride ? __ldcg(stats + row) : make_float2(INFINITY, 0);
      const Reference reference = ReferenceOf(KeysOfRow(s, row), slope);
      rows[n] = {.left = reference.left,
                 .right = reference.right,
                 .shift = kProbabilityScaleLog2<Element> - of_row.x,
                 .delta = -of_row.y * dp_factor};
    }
    if (lane_ < L::kConsumers) {
      L::Item(shared_, item_.slot())->limits[lane_] =
          LimitsOf(sequence, work.head, work.q_begin / kTileRows + lane_);
    }
  }

  // Of a tile of query rows; beyond the last one: nothing is needed.
  // What an earlier launch on the stream wrote is read past the L1 cache.
  __device__ static KeyLimits LimitsOf(const BackwardSequence& sequence, int head, int tile) {
    if (tile * kTileRows >= sequence.forward.q_len) return {kNoLimit, -kNoLimit};
    if (sequence.limits == nullptr) return {-kNoLimit, kNoLimit};
    const auto* const limits = reinterpret_cast<const int2*>(sequence.limits) +
                               static_cast<int64_t>(head) * (sequence.row_stride / kLimitRows);
    const int2 of_tile = __ldcg(limits + tile);
    return {of_tile.x, of_tile.y};
  }

  // kDkDv: the query tiles that see any of the item's keys.
  __device__ static TileSpan QueryTiles(const WorkItem& work, const BackwardSequence& sequence,
                                        int head) {
    const SequenceParams& s = sequence.forward;
    const int64_t first_key = work.q_begin;
    const int64_t last_key = min(work.q_begin + L::kItemRows, s.kv_len) - 1;
    int64_t first = s.causal != 0 ? first_key - s.diagonal : 0;
    int64_t last = s.window_diagonal == kNoWindow ? s.q_len - 1 : last_key - s.window_diagonal;
    if (sequence.reach != nullptr) {
      const int2 reach = __ldcg(reinterpret_cast<const int2*>(sequence.reach) + head);
      first = max(first, first_key - s.diagonal - reach.y + 1);
      last = min(last, last_key - s.diagonal + reach.x - 1);
    }
    first = max(first, int64_t{0});
    last = min(last, int64_t{s.q_len} - 1);
    if (first > last) return {1, 0};
    return {static_cast<int>(first) / kTileRows * kTileRows,
            static_cast<int>(last) / kTileRows * kTileRows};
  }

  __device__ void LoadQueryTiles(const WorkItem& work, const BackwardSequence& sequence, int head,
                                 const BackwardTensorMaps* maps) {
    const TileSpan span = QueryTiles(work, sequence, head);
    const float slope = sequence.forward.slopes != nullptr ? sequence.forward.slopes[head] : 0.0f;
    const RowStats* const stats = sequence.rows + static_cast<int64_t>(head) * sequence.row_stride;
    for (int batch = span.first; batch <= span.last; batch += 32 * kTileRows) {
      const int mine = batch + lane_ * kTileRows;
      KeyLimits limits{kNoLimit, -kNoLimit};
      if (mine <= span.last) limits = LimitsOf(sequence, head, mine / kTileRows);
      const bool is_needed =
          limits.left < work.q_begin + L::kItemRows - 1 && limits.right > work.q_begin;
      unsigned needed = __ballot_sync(~0u, is_needed);
      while (needed != 0) {
        const int n = __ffs(static_cast<int>(needed)) - 1;
        needed &= needed - 1;
        const KeyLimits of_tile = {__shfl_sync(~0u, limits.left, n),
                                   __shfl_sync(~0u, limits.right, n)};
        LoadTile({.first = batch + n * kTileRows,
                  .slope_log2 = slope * kLog2E,
                  .slope = slope,
                  .limits = of_tile},
                 &maps->q, &maps->d_o, head, stats);
      }
    }
  }

  // kDq: the keys that any of the item's rows see and need.
  __device__ void LoadKeyTiles(const WorkItem& work, const BackwardSequence& sequence, int kv_head,
                               const BackwardTensorMaps* maps) {
    const SequenceParams& s = sequence.forward;
    const int last_row = min(work.q_begin + L::kItemRows, s.q_len) - 1;
    int first = max(0, work.q_begin + s.window_diagonal);
    int last = s.causal != 0 ? min(s.kv_len - 1, last_row + s.diagonal) : s.kv_len - 1;
    KeyLimits widest{kNoLimit, -kNoLimit};
    const BackwardItem& item = *L::Item(shared_, item_.slot());
    for (int consumer = 0; consumer < L::kConsumers; ++consumer) {
      widest.left = min(widest.left, item.limits[consumer].left);
      widest.right = max(widest.right, item.limits[consumer].right);
    }
    first = max(first, min(widest.left, s.kv_len) + 1);
    last = min(last, widest.right - 1);
    // From the diagonal outwards, so that the nearest keys are added up first.
    if (first > last) return;
    const int tiles_begin = first / kTileRows * kTileRows;
    for (int tile = last / kTileRows * kTileRows; tile >= tiles_begin; tile -= kTileRows) {
      LoadTile({.first = tile, .slope_log2 = 0, .slope = 0, .limits = {0, 0}}, &maps->k, &maps->v,
               kv_head, nullptr);
    }
  }

  __device__ void LoadTile(const BackwardTile& tile, const CUtensorMap* map0,
                           const CUtensorMap* map1, int head, const RowStats* stats) {
    const int stage = tile_.slot();
    MbarrierWait(L::TileEmpty(base_, stage), tile_.parity() ^ 1);
    if (lane_ == 0) {
      *L::Tile(shared_, stage) = tile;
      if constexpr (L::kDkDv) {
        const uint32_t stats_full = L::StatsFull(base_, stage);
        MbarrierArriveExpectBytes(stats_full, L::kStatsBytes);
        LoadBytes(base_ + L::kStatsOffset + stage * L::kStatsBytes, stats + tile.first, stats_full,
                  L::kStatsBytes);
      }
      const uint32_t full = L::TileFull(base_, stage);
      MbarrierArriveExpectBytes(full, 2 * L::kTileBytes);
      LoadRows(L::Moving(stage, 0), map0, full, head, tile.first);
      LoadRows(L::Moving(stage, 1), map1, full, head, tile.first);
    }
    __syncwarp();
    tile_.Advance();
  }

  __device__ void LoadEnd() {
    const int stage = tile_.slot();
    MbarrierWait(L::TileEmpty(base_, stage), tile_.parity() ^ 1);
    if (lane_ == 0) {
      L::Tile(shared_, stage)->first = kEndOfItem;
      if constexpr (L::kDkDv) MbarrierArrive(L::StatsFull(base_, stage));
      MbarrierArrive(L::TileFull(base_, stage));
    }
    __syncwarp();
    tile_.Advance();
  }

  const BackwardParams& params_;
  const int lane_ = threadIdx.x % 32;
  char* const shared_ = SharedMemory();
  const uint32_t base_ = SharedAddress(SharedMemory());
  RingPosition<L::kBuffers> item_;
  RingPosition<L::kStages> tile_;
  int mapped_sequence_ = -1;
};

// kDkDv: of each tile's query rows what is to be added to scores and to <d_o, v>, relative to the
// item's first key.
template <typename Element, int kHeadDim>
class ShiftWriter {
 public:
  using L = BackwardLayout<kHeadDim, BackwardPass::kDkDv>;

  // REQUIRES: a whole warp.
  __device__ void Run() {
    for (;;) {
      MbarrierWait(L::ItemFull(base_, item_.slot()), item_.parity());
      const BackwardItem& item = *L::Item(shared_, item_.slot());
      if (item.sequence < 0) break;
      while (WriteTile(item)) {
      }
      MbarrierArrive(L::ItemEmpty(base_, item_.slot()));
      item_.Advance();
    }
  }

 private:
  // False at the end of the item.
  __device__ bool WriteTile(const BackwardItem& item) {
    const int stage = tile_.slot();
    MbarrierWait(L::StatsFull(base_, stage), tile_.parity());
    const BackwardTile tile = *L::Tile(shared_, stage);
    const bool is_end = tile.first == kEndOfItem;
    if (!is_end) {
      // A pair of rows a lane.
      const int row = tile.first + 2 * lane_;
      const RowStats* const stats = L::Stats(shared_, stage) + 2 * lane_;
      const RowStats first = stats[0];
      const RowStats second = stats[1];
      const float2 shifts0 = ShiftsOf(item, tile, row, first.lse);
      const float2 shifts1 = ShiftsOf(item, tile, row + 1, second.lse);
      L::LeftShifts(shared_, stage)[lane_] = make_float4(
          shifts0.x, shifts1.x, -first.delta * item.dp_factor, -second.delta * item.dp_factor);
      if (item.causal == 0) {
        L::RightShifts(shared_, stage)[lane_] = make_float2(shifts0.y, shifts1.y);
      }
    }
    MbarrierArrive(L::TileFull(base_, stage));
    tile_.Advance();
    return !is_end;
  }

  // For keys on the left and on the right of the row.
  __device__ static float2 ShiftsOf(const BackwardItem& item, const BackwardTile& tile, int row,
                                    float lse) {
    const Reference reference = ReferenceOf(KeysOfRow(item, row), tile.slope);
    const float shift = kProbabilityScaleLog2<Element> - lse;
    return make_float2(
        fmaf(-tile.slope_log2, static_cast<float>(reference.left - item.begin), shift),
        fmaf(tile.slope_log2, static_cast<float>(reference.right - item.begin), shift));
  }

  const int lane_ = threadIdx.x % 32;
  char* const shared_ = SharedMemory();
  const uint32_t base_ = SharedAddress(SharedMemory());
  RingPosition<L::kBuffers> item_;
  RingPosition<L::kStages> tile_;
};

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_PRODUCER_CUH_
