// Forward attention with mma.sync: FlashAttention-2 (Dao, 2023) with probabilities in registers,
// over items of 64 query rows, with biases relative to each row's largest (query_row.cuh,
// low_rank.cuh), a walk from the nearest keys outwards and the skip bound of kernels/skip_table.h.
//
// Four warps of 16 rows each. Lane 4 g + t of a warp holds rows g and g + 8 (mma.cuh).
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_ATTENTION_KERNEL_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_ATTENTION_KERNEL_CUH_

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/portable/low_rank.cuh"
#include "kernels/cuda/portable/mma.cuh"
#include "kernels/cuda/portable/portable_attention.h"
#include "kernels/cuda/portable/query_row.cuh"
#include "kernels/cuda/portable/row_state.cuh"
#include "kernels/cuda/portable/score_tile.cuh"
#include "kernels/cuda/portable/store_rows.cuh"
#include "kernels/cuda/portable/tile_copy.cuh"

namespace flashbias::cuda::portable {

static_assert(kTileRows == kQueryTileRows && kTileRows == kKeyTileKeys, "one tile size");
static_assert(kKeyTileKeys == kNormTileKeys, "the skip bound looks up one entry a key tile");

// Q, and two stages of K and V.
template <int kHeadDim>
inline constexpr int kSharedBytes = 5 * TileLayout<kHeadDim>::kBytes;

// One item while its block computes it; a thread's view.
template <typename T, int kHeadDim, bool kLowRank>
class ItemRun {
 public:
  __device__ ItemRun(const AttentionParams& params, const WorkItem& item, char* tiles,
                     FactorSlice* factors)
      : params_(params),
        item_(item),
        sequence_(params.sequences[item.sequence]),
        kv_head_(item.head / HeadsPerKvHead()),
        has_alibi_(sequence_.slopes != nullptr),
        two_sided_(sequence_.causal == 0),
        tiles_(SharedAddress(tiles)),
        factors_(factors) {}

  __device__ void Run() {
    PrepareRows();
    const KeyRange keys = KeysOfItem();
    if (!keys.empty()) {
      const int first_tile = keys.first / kTileRows;
      const int last_tile = keys.last / kTileRows;
      const int computed = Walk(keys, first_tile, last_tile);
      CountTiles(computed, last_tile - first_tile + 1 - computed);
    }
    StoreResults();
  }

 private:
  static constexpr int kSteps = kHeadDim / 16;  // mma steps over head_dim
  using Layout = TileLayout<kHeadDim>;

  __device__ static int Lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int Warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int TileRow(int i) { return Warp() * 16 + Lane() / 4 + 8 * i; }

  __device__ int HeadsPerKvHead() const { return sequence_.num_q_heads / sequence_.num_kv_heads; }
  // Heads of the tile; the last tile of a group may have fewer than heads_per_tile.
  __device__ int NumHeads() const {
    return min(sequence_.heads_per_tile, (kv_head_ + 1) * HeadsPerKvHead() - item_.head);
  }
  __device__ int LastRow() const {
    return min(item_.q_begin + kTileRows / sequence_.heads_per_tile, sequence_.q_len) - 1;
  }
  // Row and head of a tile row; false where it has none.
  __device__ bool Locate(int tile_row, int* row, int* head) const {
    const int heads = sequence_.heads_per_tile;
    *row = item_.q_begin + tile_row / heads;
    *head = item_.head + tile_row % heads;
    return *row <= LastRow() && tile_row % heads < NumHeads();
  }

  __device__ KeyRange KeysOfItem() const {
    KeyRange keys = AdmittedKeys(sequence_, item_.q_begin, LastRow());
    if (sequence_.num_splits > 1) {
      const int64_t begin = int64_t{item_.split} * sequence_.keys_per_split;
      const int64_t last = begin + sequence_.keys_per_split - 1;
      if (begin > keys.last) return {1, 0};
      keys.first = max(keys.first, static_cast<int>(begin));
      keys.last = static_cast<int>(min(int64_t{keys.last}, last));
    }
    return keys;
  }

  __device__ void PrepareRows() {
    scale_ = ToFinite(sequence_.softmax_scale * kLog2E);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      RowState& row = rows_[i];
      int q_row;
      int head;
      const bool exists = Locate(TileRow(i), &q_row, &head);
      row.keys = exists ? AdmittedKeys(sequence_, q_row, q_row) : KeyRange{1, 0};
      row.max = -INFINITY;
      row.sum = 0;
      row.slope_log2 = 0;
      row.bends = {0, 0};
      row.log2_budget = NAN;
      if constexpr (kLowRank) {
        row.frame = -INFINITY;
        row.phi_q_begin = -1;
        if (exists) row.phi_q_begin = QueryFactor(sequence_).Begin(q_row, head);
      } else if (has_alibi_ && !row.keys.empty()) {
        PrepareAlibi(q_row + sequence_.diagonal, sequence_.slopes[head], sequence_.log_eps_per_side,
                     row);
      }
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) o_[n][2 * i] = o_[n][2 * i + 1] = 0;
    }
  }

  __device__ bool MaySkip() const {
    return !kLowRank && sequence_.key_norms != nullptr && has_alibi_ &&
           sequence_.log_eps_per_side > -INFINITY;
  }

  __device__ uint32_t KeyTile() const { return tiles_ + (1 + 2 * stage_) * Layout::kBytes; }
  __device__ uint32_t ValueTile() const { return KeyTile() + Layout::kBytes; }

  __device__ void CopyQueries() const {
    constexpr int kRowStep = kThreads / Layout::kChunks;
    const int chunk = static_cast<int>(threadIdx.x) % Layout::kChunks;
    const int first = static_cast<int>(threadIdx.x) / Layout::kChunks;
    const uint32_t to = tiles_ + Layout::Offset(first, chunk);
#pragma unroll
    for (int i = 0; i < kTileRows; i += kRowStep) {
      int row;
      int head;
      const bool valid = Locate(first + i, &row, &head) && chunk * 8 < sequence_.head_dim;
      const int64_t vector = int64_t{row} * sequence_.num_q_heads + head;
      const char* from = static_cast<const char*>(sequence_.q) +
                         2 * (vector * sequence_.q_head_stride + chunk * 8);
      CopyAsync16(to + i * Layout::kRowBytes, from, valid);
    }
  }

  // Queries as A fragments, and what the skip bound needs of them.
  __device__ void LoadQueries(bool may_skip) {
    const uint32_t first = tiles_ + Layout::Offset(Warp() * 16 + Lane() % 16, Lane() / 16);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) LoadMatrices(q_[k], Layout::Later(first, 2 * k));
    if (!may_skip) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float squares = 0;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const float2 low = UnpackPair<T>(q_[k][i]);
        const float2 high = UnpackPair<T>(q_[k][i + 2]);
        squares = fmaf(low.x, low.x, squares);
        squares = fmaf(low.y, low.y, squares);
        squares = fmaf(high.x, high.x, squares);
        squares = fmaf(high.y, high.y, squares);
      }
      squares = QuadSum(squares);
      // Squares may vanish in fp32, each by less than 2^-149; the bound must not come out below.
      rows_[i].q_norm = fabsf(scale_) * sqrtf(squares + kVanishedSquares) * (1.0f + 2e-5f);
    }
  }

  // Computes the tiles first_tile .. last_tile, from the one nearest to the rows outwards, as far
  // as they can hold mass. Returns how many.
  __device__ int Walk(const KeyRange& keys, int first_tile, int last_tile) {
    const bool may_skip = MaySkip();
    // Without skipping any order will do.
    const int position = LastRow() + sequence_.diagonal;
    const int start = may_skip ? min(max(position, keys.first), keys.last) / kTileRows : last_tile;

    const TilePairCopier<kHeadDim> copier(KeysAndValues(sequence_), kv_head_);
    CopyQueries();
    copier.Copy(start, KeyTile(), ValueTile());
    WaitForCopies();
    __syncthreads();
    LoadQueries(may_skip);

    int tile = start;
    Side side = Side::kLeft;
    int left = start - 1;  // the nearest tiles that have not been copied
    int right = start + 1;
    bool done = false;
    int computed = 0;
    while (true) {
      WaitForCopies();
      // Also: everyone has finished with the stage that is filled next.
      const bool stop = __syncthreads_and(done);
      if (stop && side == Side::kLeft) left = first_tile - 1;
      if (stop && side == Side::kRight) right = last_tile + 1;

      // In turn, so that the bounds of both sides know the near keys of both.
      const bool has_left = left >= first_tile;
      const bool has_right = right <= last_tile;
      const bool has_next = has_left || has_right;
      const bool goes_right = side == Side::kLeft ? has_right : !has_left;
      const int next = goes_right ? right : left;
      float max_norm = INFINITY;
      if (has_next) {
        stage_ ^= 1;
        copier.Copy(next, KeyTile(), ValueTile());
        stage_ ^= 1;
        if (may_skip) max_norm = MaxNormFrom(goes_right ? Side::kRight : Side::kLeft, next);
      }
      if (!stop) {
        ComputeTile(tile * kTileRows);
        ++computed;
      }
      if (!has_next) return computed;

      tile = next;
      side = goes_right ? Side::kRight : Side::kLeft;
      if (goes_right) {
        ++right;
      } else {
        --left;
      }
      stage_ ^= 1;
      if (may_skip) done = RowsAreDone(side, tile, max_norm);
    }
  }

  // The largest |k| of the tiles from `tile` outwards.
  __device__ float MaxNormFrom(Side side, int tile) const {
    const int64_t table = side == Side::kLeft ? kv_head_ : sequence_.num_kv_heads + kv_head_;
    return __ldg(sequence_.key_norms + table * sequence_.norm_tiles + tile);
  }

  // Whether this thread's rows need no tile from `tile` outwards.
  __device__ bool RowsAreDone(Side side, int tile, float max_norm) const {
    const float sums[2] = {QuadSum(rows_[0].sum), QuadSum(rows_[1].sum)};
    const int nearest = tile * kTileRows + (side == Side::kLeft ? kTileRows - 1 : 0);
    return IsDone(rows_[0], sums[0], side, nearest, max_norm) &&
           IsDone(rows_[1], sums[1], side, nearest, max_norm);
  }

  __device__ void ComputeTile(int key_begin) {
    float scores[8][4];
    if constexpr (kLowRank) {
      const int64_t phi_q_begin[2] = {rows_[0].phi_q_begin, rows_[1].phi_q_begin};
      float bias[8][4];
      double centre_product[2];
      LowRankBias(QueryFactor(sequence_), phi_q_begin, KeyFactor(sequence_), item_.head, key_begin,
                  *factors_, bias, centre_product);
      MultiplyQueriesAndKeys(scores);
      AddLowRankBias(bias, centre_product, scale_, key_begin, rows_, scores);
    } else {
      // Warps beyond the last row, or before the causal diagonal, leave the others their turn.
      const bool sees = rows_[0].keys.Meets(key_begin, key_begin + kTileRows) ||
                        rows_[1].keys.Meets(key_begin, key_begin + kTileRows);
      if (!__any_sync(0xffffffffu, sees)) return;
      MultiplyQueriesAndKeys(scores);
      if (has_alibi_) {
        AddAlibi(rows_, scale_, two_sided_, key_begin, scores);
      } else {
        Scale(scale_, scores);
      }
    }
    Mask(rows_, key_begin, scores);
    float rescale[2];
    uint32_t p[4][4];
    OnlineSoftmax<T>(scores, rows_, rescale, p);
    MultiplyProbabilitiesAndValues(p, rescale);
  }

  __device__ void MultiplyQueriesAndKeys(float (&scores)[8][4]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = 0;
    }
    const uint32_t first = KeyTile() + Layout::Offset(Lane() % 8 + Lane() / 16 * 8, Lane() / 8 % 2);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t keys[4];
        LoadMatrices(keys, Layout::Later(first, 2 * k) + 16 * n * Layout::kRowBytes);
        Mma<T>(scores[2 * n], q_[k], keys[0], keys[1]);
        Mma<T>(scores[2 * n + 1], q_[k], keys[2], keys[3]);
      }
    }
  }

  // o = o * rescale + p v. A tile's product starts from zero, so that the tensor cores' truncation
  // does not grow with the number of keys.
  __device__ void MultiplyProbabilitiesAndValues(const uint32_t (&p)[4][4],
                                                 const float (&rescale)[2]) {
    const uint32_t first = ValueTile() + Layout::Offset(Lane() % 16, Lane() / 16);
#pragma unroll
    for (int begin = 0; begin < kHeadDim / 8; begin += 4) {
      float product[4][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint32_t values[4];
          LoadMatricesTransposed(values,
                                 Layout::Later(first, begin + 2 * n) + 16 * k * Layout::kRowBytes);
          Mma<T>(product[2 * n], p[k], values[0], values[1]);
          Mma<T>(product[2 * n + 1], p[k], values[2], values[3]);
        }
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          o_[begin + n][i] = fmaf(o_[begin + n][i], rescale[i / 2], product[n][i]);
        }
      }
    }
  }

  __device__ void CountTiles(int computed, int skipped) const {
    if (threadIdx.x != 0) return;
    const auto heads = static_cast<unsigned long long>(NumHeads());
    TileCounts& counts = params_.tile_counts[sequence_.problem];
    atomicAdd(&counts.computed, heads * computed);
    if (skipped > 0) atomicAdd(&counts.skipped, heads * skipped);
  }

  __device__ void StoreResults() const {
    const float sums[2] = {QuadSum(rows_[0].sum), QuadSum(rows_[1].sum)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const RowState& row = rows_[i];
      const float sum = sums[i];
      int q_row;
      int head;
      if (!Locate(TileRow(i), &q_row, &head)) continue;
      const bool empty = sum == 0;
      const float factor = 1.0f / sum;
      const double log2_sum = static_cast<double>(row.max) + static_cast<double>(log2f(sum));
      const int64_t out_row = int64_t{q_row} * sequence_.num_q_heads + head;
      if (sequence_.num_splits > 1) {
        const int64_t partial_row =
            sequence_.partial_begin + out_row * sequence_.num_splits + item_.split;
        double lse = log2_sum;
        if constexpr (kLowRank) lse += row.frame * kExactLog2E;
        StorePartial<kHeadDim, kLowRank>(params_, partial_row, lse, empty, factor, i, o_);
        continue;
      }
      StoreOutput<T, kHeadDim>(sequence_.o, sequence_.head_dim, out_row, empty, factor, i, o_);
      if (sequence_.lse == nullptr || Lane() % 4 != 0) continue;
      double reference = 0;
      if constexpr (kLowRank) {
        reference = row.frame;
      } else if (has_alibi_ && !empty) {
        reference = ReferenceBias(sequence_, row.keys, q_row, sequence_.slopes[head]);
      }
      sequence_.lse[out_row] = empty ? -INFINITY : static_cast<float>(kLn2 * log2_sum + reference);
    }
  }

  const AttentionParams& params_;
  const WorkItem item_;
  const SequenceParams& sequence_;
  const int kv_head_;
  const bool has_alibi_;
  const bool two_sided_;
  const uint32_t tiles_;
  FactorSlice* const factors_;
  int stage_ = 0;
  float scale_;  // softmax_scale * log2(e)
  RowState rows_[2];
  uint32_t q_[kSteps][4];
  float o_[kHeadDim / 8][4];
};

template <typename T, int kHeadDim, bool kLowRank>
__global__ void __launch_bounds__(kThreads, kHeadDim == 128 ? 2 : 3)
    AttentionKernel(const __grid_constant__ AttentionParams params) {
  extern __shared__ __align__(256) char tiles[];
  // In turn, so that one barrier an item is enough.
  __shared__ int next_items[2];
  FactorSlice* factors = nullptr;
  if constexpr (kLowRank) {
    __shared__ FactorSlice slice;
    factors = &slice;
  }

  int turn = 0;
  int index = static_cast<int>(blockIdx.x);
  while (index < params.num_items) {
    if (threadIdx.x == 0) {
      next_items[turn] = static_cast<int>(atomicAdd(params.next_item, 1u) + gridDim.x);
    }
    ItemRun<T, kHeadDim, kLowRank>(params, params.items[index], tiles, factors).Run();
    __syncthreads();
    index = next_items[turn];
    turn ^= 1;
  }

  // The last block to leave makes the counters ready for the next launch.
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(params.next_item + 1, 1u) == gridDim.x - 1) {
      params.next_item[0] = 0;
      params.next_item[1] = 0;
    }
  }
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_ATTENTION_KERNEL_CUH_
