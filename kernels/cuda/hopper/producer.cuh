// The producer: one thread that takes work items and keeps the rings of items and tiles full.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_PRODUCER_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_PRODUCER_CUH_

#include "kernels/cuda/hopper/kernel_params.h"
#include "kernels/cuda/hopper/layout.cuh"
#include "kernels/cuda/softmax_math.cuh"

namespace flashbias::cuda::hopper {

template <int kHeadDim>
class Producer {
 public:
  using L = Layout<kHeadDim>;

  __device__ explicit Producer(const KernelParams& params) : params_(params) {}

  // REQUIRES: one thread of the block.
  __device__ void Run() {
    unsigned item = blockIdx.x;
    const AttentionParams& plan = params_.plan;
    while (item < static_cast<unsigned>(plan.num_items)) {
      if (params_.num_first_items > 0) {
        WorkItem work{};
        if (item < static_cast<unsigned>(params_.num_first_items)) {
          const uint32_t packed = params_.first_items[item];
          work.q_begin = static_cast<int>(packed >> 16) * L::kQueryRows;
          work.head = static_cast<int>(packed & 0xffff);
        } else {
          work = plan.items[item];
        }
        const float slope = params_.sequence.slopes != nullptr ? params_.slopes[work.head] : 0.0f;
        Produce(work, params_.sequence, slope, params_.tensor_maps);
      } else {
        const WorkItem work = plan.items[item];
        const SequenceParams& sequence = plan.sequences[work.sequence];
        const float slope = sequence.slopes != nullptr ? sequence.slopes[work.head] : 0.0f;
        const auto* maps = static_cast<const SequenceTensorMaps*>(plan.tensor_maps) + work.sequence;
        if (work.sequence != mapped_sequence_) {
          AcquireTensorMap(&maps->q);
          AcquireTensorMap(&maps->k);
          AcquireTensorMap(&maps->v);
          mapped_sequence_ = work.sequence;
        }
        Produce(work, sequence, slope, *maps);
      }
      // Only now: whoever has most left to load claims last, so that the short items at the end of
      // the list go to the blocks that are done first.
      item = FetchAdd(&plan.next_item[0], 1) + gridDim.x;
    }
    // An empty item ends the consumers.
    MbarrierWait(L::ItemEmpty(base_, item_.slot()), item_.parity() ^ 1);
    L::Info(shared_, item_.slot())->sequence = -1;
    MbarrierArrive(L::ItemFull(base_, item_.slot()));
    // This launch must not end before the one whose tables it may not have read.
    WaitForPreviousLaunch();
    ResetCounters();
  }

 private:
  // The keys that any of the item's rows may see, and the tile nearest to its last row.
  struct KeySpan {
    int first_key;
    int last_key;  // below first_key: none
    int first_tile;
  };

  __device__ void Produce(const WorkItem& work, const SequenceParams& sequence, float slope,
                          const SequenceTensorMaps& maps) {
    MbarrierWait(L::ItemEmpty(base_, item_.slot()), item_.parity() ^ 1);
    // Loads first: they take longest.
    LoadQueries(work, maps);
    const KeySpan span = WalkedKeys(work, sequence);
    const bool grouped = sequence.num_q_heads != sequence.num_kv_heads;
    const int kv_head =
        grouped ? work.head / (sequence.num_q_heads / sequence.num_kv_heads) : work.head;
    const bool has_keys = span.first_key <= span.last_key;
    if (has_keys) LoadTile(span.first_tile, kv_head, maps);
    ItemInfo* const info = L::Info(shared_, item_.slot());
    Describe(work, sequence, slope, kv_head, span, info);
    MbarrierArrive(L::ItemFull(base_, item_.slot()));
    if (is_first_) {
      // All blocks begin at once: loads for later must not stand in the way of what each waits for.
      MbarrierWait(L::QueriesFull(base_, 0), 0);
      if (has_keys) MbarrierWait(L::KeysFull(base_, 0), 0);
      is_first_ = false;
    }
    LoadOtherTiles(span, kv_head, maps, info);
    item_.Advance();
  }

  __device__ static KeySpan WalkedKeys(const WorkItem& work, const SequenceParams& s) {
    const int last_row = min(work.q_begin + L::kQueryRows, s.q_len) - 1;
    const int position = last_row + s.diagonal;
    KeySpan span;
    span.last_key = s.causal != 0 ? min(s.kv_len - 1, position) : s.kv_len - 1;
    span.first_key = max(0, work.q_begin + s.window_diagonal);
    span.first_tile =
        min(max(position, span.first_key), span.last_key) / kKeyTileKeys * kKeyTileKeys;
    return span;
  }

  __device__ void Describe(const WorkItem& work, const SequenceParams& s, float slope, int kv_head,
                           const KeySpan& span, ItemInfo* info) {
    info->sequence = work.sequence;
    info->q_begin = work.q_begin;
    info->q_len = s.q_len;
    info->kv_len = s.kv_len;
    info->diagonal = s.diagonal;
    info->window_diagonal = s.window_diagonal;
    info->causal = s.causal;
    info->first_tile = span.first_tile;
    info->num_q_heads = s.num_q_heads;
    info->head_dim = s.head_dim;
    info->problem = s.problem;
    info->scale_log2 = s.softmax_scale * kLog2E;
    info->scores_per_log2 = 1.0f / info->scale_log2;
    info->slope_log2 = slope * kLog2E;
    info->slope_in_scores = slope / s.softmax_scale;
    info->slope = slope;
    info->exact_diagonal = s.exact_diagonal;
    info->norms_before = nullptr;
    if (s.key_norms != nullptr && slope > 0) {
      // Where 1 - exp(-slope) underflows everything is kept.
      const float budget = (s.log_eps_per_side + logf(-expm1f(-slope))) * kLog2E;
      info->keys_per_log2 = 1.0f / info->slope_log2;
      info->log2_budget = budget;
      const float* norms = s.key_norms + static_cast<int64_t>(kv_head) * s.norm_tiles;
      if (isfinite(budget)) info->norms_before = norms;
      info->norms_after = norms + static_cast<int64_t>(s.num_kv_heads) * s.norm_tiles;
    }
    info->o = static_cast<uint16_t*>(s.o) + static_cast<int64_t>(work.head) * s.head_dim;
    info->lse = s.lse != nullptr ? s.lse + work.head : nullptr;
    for (int consumer = 0; consumer < L::kConsumers; ++consumer) {
      // A consumer without rows needs nothing.
      const bool has_rows = work.q_begin + consumer * kRowsPerConsumer < s.q_len;
      info->left_limit[consumer] = has_rows ? -kNoLimit : kNoLimit;
      info->right_limit[consumer] = has_rows ? kNoLimit : -kNoLimit;
    }
  }

  __device__ void LoadQueries(const WorkItem& work, const SequenceTensorMaps& maps) {
    const uint32_t full = L::QueriesFull(base_, item_.slot());
    MbarrierArriveExpectBytes(full, L::kConsumers * L::kQueryBytes);
    uint32_t to = base_ + L::kQueryOffset + item_.slot() * L::kConsumers * L::kQueryBytes;
    for (int row = 0; row < L::kQueryRows; row += L::kQueryBoxRows) {
      for (int panel = 0; panel < L::kPanels; ++panel) {
        LoadBox(to, &maps.q, full, panel * L::kPanelColumns, work.head, work.q_begin + row);
        to += L::kQueryBoxRows * L::kRowBytes;
      }
    }
  }

  // From the first tile leftwards, then rightwards, while anyone needs them; then the end.
  __device__ void LoadOtherTiles(const KeySpan& span, int kv_head, const SequenceTensorMaps& maps,
                                 ItemInfo* info) {
    if (span.first_key <= span.last_key) {
      for (int tile = span.first_tile - kKeyTileKeys; tile + kKeyTileKeys > span.first_key;
           tile -= kKeyTileKeys) {
        if (!LeftIsNeeded(tile, info)) break;
        LoadTile(tile, kv_head, maps);
      }
      for (int tile = span.first_tile + kKeyTileKeys; tile <= span.last_key; tile += kKeyTileKeys) {
        if (!RightIsNeeded(tile, info)) break;
        LoadTile(tile, kv_head, maps);
      }
    }
    MbarrierWait(L::KeysEmpty(base_, tile_.slot()), tile_.parity() ^ 1);
    L::Tiles(shared_)[tile_.slot()] = kEndOfItem;
    MbarrierArrive(L::KeysFull(base_, tile_.slot()));
    if (L::kScoresAhead) {
      MbarrierWait(L::ValuesEmpty(base_, tile_.slot()), tile_.parity() ^ 1);
      MbarrierArrive(L::ValuesFull(base_, tile_.slot()));
    }
    tile_.Advance();
  }

  // The consumers set these limits meanwhile, hence atomics; an old value only costs a load.
  __device__ static bool LeftIsNeeded(int tile, ItemInfo* info) {
    int limit = kNoLimit;
    for (int consumer = 0; consumer < L::kConsumers; ++consumer) {
      limit = min(limit, atomicOr(&info->left_limit[consumer], 0));
    }
    return tile + kKeyTileKeys - 1 > limit;
  }

  __device__ static bool RightIsNeeded(int tile, ItemInfo* info) {
    int limit = -kNoLimit;
    for (int consumer = 0; consumer < L::kConsumers; ++consumer) {
      limit = max(limit, atomicOr(&info->right_limit[consumer], 0));
    }
    return tile < limit;
  }

  __device__ void LoadTile(int tile, int kv_head, const SequenceTensorMaps& maps) {
    const int slot = tile_.slot();
    MbarrierWait(L::KeysEmpty(base_, slot), tile_.parity() ^ 1);
    L::Tiles(shared_)[slot] = tile;
    const uint32_t offset = base_ + slot * L::kTileBytes;
    const uint32_t keys_full = L::KeysFull(base_, slot);
    MbarrierArriveExpectBytes(keys_full, (L::kScoresAhead ? 1 : 2) * L::kTileBytes);
    for (int panel = 0; panel < L::kPanels; ++panel) {
      LoadBox(offset + L::kKeyOffset + panel * L::kKeyPanelBytes, &maps.k, keys_full,
              panel * L::kPanelColumns, kv_head, tile);
    }
    const uint32_t values_full = L::ValuesFull(base_, slot);
    if (L::kScoresAhead) {
      MbarrierWait(L::ValuesEmpty(base_, slot), tile_.parity() ^ 1);
      MbarrierArriveExpectBytes(values_full, L::kTileBytes);
    }
    for (int panel = 0; panel < L::kPanels; ++panel) {
      LoadBox(offset + L::kValueOffset + panel * L::kKeyPanelBytes, &maps.v, values_full,
              panel * L::kPanelColumns, kv_head, tile);
    }
    tile_.Advance();
  }

  // The last block to leave makes the counters ready for the next launch.
  __device__ void ResetCounters() {
    __threadfence();
    unsigned* const counters = params_.plan.next_item;
    if (atomicAdd(&counters[1], 1u) == gridDim.x - 1) {
      counters[0] = 0;
      counters[1] = 0;
    }
  }

  const KernelParams& params_;
  char* const shared_ = SharedMemory();
  const uint32_t base_ = SharedAddress(SharedMemory());
  RingPosition<L::kBuffers> item_;
  RingPosition<L::kStages> tile_;
  int mapped_sequence_ = -1;
  bool is_first_ = true;
};

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_PRODUCER_CUH_
