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
#include "kernels/cuda/portable/element.cuh"
#include "kernels/cuda/portable/low_rank.cuh"
#include "kernels/cuda/portable/mma.cuh"
#include "kernels/cuda/portable/partial_lse.cuh"
#include "kernels/cuda/portable/portable_attention.h"
#include "kernels/cuda/portable/query_row.cuh"
#include "kernels/cuda/portable/tile_copy.cuh"

namespace flashbias::cuda::portable {

static_assert(kTileRows == kQueryTileRows && kTileRows == kKeyTileKeys, "one tile size");
static_assert(kKeyTileKeys == kNormTileKeys, "the skip bound looks up one entry a key tile");

// Q, and two stages of K and V.
template <int kHeadDim>
inline constexpr int kSharedBytes = 5 * TileLayout<kHeadDim>::kBytes;

enum class Side { kLeft, kRight };

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
        tiles_(SharedAddress(tiles)),
        factors_(factors) {}

  __device__ void Run() {
    PrepareRows();
    const KeyRange keys = KeysOfItem();
    if (keys.empty()) {
      StoreResults();
      return;
    }
    const int first_tile = keys.first / kTileRows;
    const int last_tile = keys.last / kTileRows;
    const bool may_skip = MaySkip();
    // Without skipping the order is free, and one walk leaves the pipeline full.
    const int64_t position = int64_t{LastRow()} + sequence_.diagonal;
    const int64_t nearest = min(max(position, int64_t{keys.first}), int64_t{keys.last});
    const int start = may_skip ? static_cast<int>(nearest) / kTileRows : last_tile;

    const KeyTileCopier<kHeadDim> copier(sequence_, kv_head_);
    CopyQueries();
    copier.Copy(start, KeyTile(), ValueTile());
    WaitForCopies();
    __syncthreads();
    LoadQueries(may_skip);

    int computed = Walk<Side::kLeft>(copier, start, first_tile, may_skip);
    if (start < last_tile) {
      stage_ ^= 1;
      copier.Copy(start + 1, KeyTile(), ValueTile());
      computed += Walk<Side::kRight>(copier, start + 1, last_tile, may_skip);
    }
    CountTiles(computed, last_tile - first_tile + 1 - computed);
    StoreResults();
  }

 private:
  static constexpr int kSteps = kHeadDim / 16;  // mma steps over head_dim
  using Layout = TileLayout<kHeadDim>;

  __device__ static int Lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int Warp() { return static_cast<int>(threadIdx.x) / 32; }

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
      Row& row = rows_[i];
      int head;
      row.exists = Locate(Warp() * 16 + Lane() / 4 + 8 * i, &row.row, &head);
      row.keys = row.exists ? AdmittedKeys(sequence_, row.row, row.row) : KeyRange{1, 0};
      row.head = head;
      row.max = -INFINITY;
      row.sum = 0;
      row.slope = 0;
      row.left = row.right = 0;
      if constexpr (kLowRank) {
        row.frame = -INFINITY;
        row.phi_q_begin = -1;
        if (row.exists) {
          const int phi_head = sequence_.phi_q_heads == 1 ? 0 : head;
          row.phi_q_begin = (int64_t{row.row} * sequence_.phi_q_heads + phi_head) * sequence_.rank;
        }
      } else if (sequence_.slopes != nullptr && !row.keys.empty()) {
        row.slope = sequence_.slopes[head];
        const int64_t position = int64_t{row.row} + sequence_.diagonal;
        const int64_t distance = llabs(position - ReferenceKey(row.keys, position, row.slope));
        row.left = position - distance;
        row.right = position + distance;
      }
      row.slope_log2 = ToFinite(row.slope * kLog2E);
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) o_[n][2 * i] = o_[n][2 * i + 1] = 0;
    }
  }

  __device__ bool MaySkip() const {
    return !kLowRank && sequence_.key_norms != nullptr && sequence_.slopes != nullptr &&
           sequence_.log_eps_per_side > -INFINITY;
  }

  __device__ uint32_t KeyTile() const { return tiles_ + (1 + 2 * stage_) * Layout::kBytes; }
  __device__ uint32_t ValueTile() const { return KeyTile() + Layout::kBytes; }

  __device__ void CopyQueries() const {
    constexpr int kRowStep = kThreads / Layout::kChunks;
    const int chunk = static_cast<int>(threadIdx.x) % Layout::kChunks;
#pragma unroll
    for (int i = 0; i < kTileRows; i += kRowStep) {
      const int tile_row = i + static_cast<int>(threadIdx.x) / Layout::kChunks;
      int row;
      int head;
      const bool valid = Locate(tile_row, &row, &head) && chunk * 8 < sequence_.head_dim;
      const int64_t offset =
          valid ? ((int64_t{row} * sequence_.num_q_heads + head) * sequence_.q_head_stride +
                   chunk * 8) *
                      2
                : 0;
      CopyAsync16(tiles_ + Layout::Offset(tile_row, chunk),
                  static_cast<const char*>(sequence_.q) + offset, valid);
    }
  }

  // Queries as A fragments, and what the skip bound needs of them.
  __device__ void LoadQueries(bool may_skip) {
    const int row = Warp() * 16 + Lane() % 16;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      LoadMatrices(q_[k], tiles_ + Layout::Offset(row, 2 * k + Lane() / 16));
    }
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
      squares = SumOfQuad(squares);
      // Squares may vanish in fp32, each by less than 2^-149; the bound must not come out below.
      rows_[i].q_norm = fabsf(scale_) * sqrtf(squares + 0x1p-142f) * (1.0f + 2e-5f);
      const float slope = rows_[i].slope;
      // A NaN keeps every key.
      rows_[i].log2_budget =
          slope > 0 ? sequence_.log_eps_per_side * kLog2E + log2f(-expm1f(-slope)) : NAN;
    }
  }

  static __device__ float SumOfQuad(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
  }

  // Walks the key tiles first .. last, outwards; the first has been copied or is on its way.
  // Returns how many it computed.
  template <Side kSide>
  __device__ int Walk(const KeyTileCopier<kHeadDim>& copier, int first, int last, bool may_skip) {
    constexpr int kStep = kSide == Side::kLeft ? -1 : 1;
    bool done = false;
    int computed = 0;
    for (int tile = first;; tile += kStep) {
      WaitForCopies();
      // Also: everyone has finished with the stage that is filled next.
      if (__syncthreads_and(done)) break;
      if (tile != last) {
        stage_ ^= 1;
        copier.Copy(tile + kStep, KeyTile(), ValueTile());
        stage_ ^= 1;
      }
      const float max_norm = may_skip && tile != last ? MaxNormFrom<kSide>(tile + kStep) : INFINITY;
      ComputeTile(tile * kTileRows);
      ++computed;
      if (tile == last) break;
      stage_ ^= 1;
      if (may_skip) done = IsDone<kSide>(tile + kStep, max_norm);
    }
    return computed;
  }

  // The largest |k| of the tiles from `tile` outwards.
  template <Side kSide>
  __device__ float MaxNormFrom(int tile) const {
    const int64_t table = kSide == Side::kLeft ? kv_head_ : sequence_.num_kv_heads + kv_head_;
    return __ldg(sequence_.key_norms + table * sequence_.norm_tiles + tile);
  }

  // Whether this thread's rows need no tile from `tile` outwards (SkipBound in skip_table.h).
  template <Side kSide>
  __device__ bool IsDone(int tile, float max_norm) const {
    const float sums[2] = {SumOfQuad(rows_[0].sum), SumOfQuad(rows_[1].sum)};
    const int nearest = tile * kTileRows + (kSide == Side::kLeft ? kTileRows - 1 : 0);
    bool done = true;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Row& row = rows_[i];
      const bool none_left = row.keys.empty() || (kSide == Side::kLeft ? row.keys.first > nearest
                                                                       : row.keys.last < nearest);
      const auto distance =
          static_cast<float>(kSide == Side::kLeft ? row.left - nearest : nearest - row.right);
      const float lse = row.max + log2f(sums[i]);
      // Slack as in skip_table.h, for the rounding of norms, scores and sums.
      const float largest = row.q_norm * max_norm * (1.0f + 1e-4f) + 1e-3f * kLog2E;
      const float mass = largest - row.slope_log2 * distance - lse;
      done = done && (none_left || (distance >= 0 && mass <= row.log2_budget));
    }
    return done;
  }

  __device__ void ComputeTile(int key_begin) {
    float scores[8][4];
    if constexpr (kLowRank) {
      const int head = sequence_.phi_k_heads == 1 ? 0 : item_.head;
      const int64_t phi_q_begin[2] = {rows_[0].phi_q_begin, rows_[1].phi_q_begin};
      float bias[8][4];
      double centre_product[2];
      LowRankBias(sequence_, head, key_begin, phi_q_begin, *factors_, bias, centre_product);
      MultiplyQueriesAndKeys(scores);
      AddLowRankBias(key_begin, bias, centre_product, scores);
    } else {
      MultiplyQueriesAndKeys(scores);
      AddAlibi(key_begin, scores);
    }
    Mask(key_begin, scores);
    float rescale[2];
    uint32_t p[4][4];
    OnlineSoftmax(scores, rescale, p);
    MultiplyProbabilitiesAndValues(p, rescale);
  }

  __device__ void MultiplyQueriesAndKeys(float (&scores)[8][4]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = 0;
    }
    const int row = Lane() % 8 + Lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t keys[4];
        LoadMatrices(keys, KeyTile() + Layout::Offset(16 * n + row, 2 * k + Lane() / 8 % 2));
        Mma<T>(scores[2 * n], q_[k], keys[0], keys[1]);
        Mma<T>(scores[2 * n + 1], q_[k], keys[2], keys[3]);
      }
    }
  }

  // Products -> scores in the log2 domain, relative to the bias of the row's reference key.
  __device__ void AddAlibi(int key_begin, float (&scores)[8][4]) const {
    const bool alibi = sequence_.slopes != nullptr;
    const bool two_sided = sequence_.causal == 0;
    float left[2];
    float right[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      left[i] = static_cast<float>(rows_[i].left - key_begin - 2 * (Lane() % 4));
      right[i] = static_cast<float>(rows_[i].right - key_begin - 2 * (Lane() % 4));
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto column = static_cast<float>(8 * n + i % 2);
        float& score = scores[n][i];
        if (!alibi) {
          score *= scale_;
        } else {
          float distance = left[i / 2] - column;
          if (two_sided) distance = fmaxf(distance, column - right[i / 2]);
          score = fmaf(scale_, score, -rows_[i / 2].slope_log2 * distance);
        }
      }
    }
  }

  // As AddAlibi, relative to the largest product with a tile's centre that the row has met.
  __device__ void AddLowRankBias(int key_begin, const float (&bias)[8][4],
                                 const double (&centre_product)[2], float (&scores)[8][4]) {
    float constant[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Row& row = rows_[i];
      constant[i] = 0;
      // A tile that the row does not see must not move its reference.
      if (row.keys.empty() || row.keys.first >= key_begin + kTileRows ||
          row.keys.last < key_begin) {
        continue;
      }
      const double difference = (centre_product[i] - row.frame) * static_cast<double>(kLog2E);
      if (difference <= 0) {
        constant[i] = static_cast<float>(difference);
      } else {
        row.max -= static_cast<float>(difference);
        row.frame = centre_product[i];
      }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = fmaf(scale_, scores[n][i], fmaf(kLog2E, bias[n][i], constant[i / 2]));
      }
    }
  }

  __device__ void Mask(int key_begin, float (&scores)[8][4]) const {
    int first[2];
    int last[2];
    bool partial = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      first[i] = rows_[i].keys.first - key_begin - 2 * (Lane() % 4);
      last[i] = rows_[i].keys.last - key_begin - 2 * (Lane() % 4);
      partial = partial || rows_[i].keys.first > key_begin ||
                rows_[i].keys.last < key_begin + kTileRows - 1;
    }
    if (!__any_sync(0xffffffffu, partial)) return;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + i % 2;
        if (column < first[i / 2] || column > last[i / 2]) scores[n][i] = -INFINITY;
      }
    }
  }

  // Scores -> probabilities relative to the new row maxima, as A fragments.
  __device__ void OnlineSoftmax(float (&scores)[8][4], float (&rescale)[2], uint32_t (&p)[4][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Row& row = rows_[i];
      float max = row.max;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        max = fmaxf(max, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
      }
      max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
      max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
      // A row that has seen no key yet has no maximum to be relative to.
      const float reference = max == -INFINITY ? 0.0f : max;
      rescale[i] = Exp2(row.max - reference);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float first = Exp2(scores[n][2 * i] - reference);
        const float second = Exp2(scores[n][2 * i + 1] - reference);
        sum += first + second;
        p[n / 2][n % 2 * 2 + i] = PackPair<T>(first, second);
      }
      row.sum = fmaf(row.sum, rescale[i], sum);
      row.max = max;
    }
  }

  // o = o * rescale + p v. A tile's product starts from zero, so that the tensor cores' truncation
  // does not grow with the number of keys.
  __device__ void MultiplyProbabilitiesAndValues(const uint32_t (&p)[4][4],
                                                 const float (&rescale)[2]) {
#pragma unroll
    for (int begin = 0; begin < kHeadDim / 8; begin += 4) {
      float product[4][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint32_t values[4];
          LoadMatricesTransposed(values, ValueTile() + Layout::Offset(16 * k + Lane() % 16,
                                                                      begin + 2 * n + Lane() / 16));
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
    const float sums[2] = {SumOfQuad(rows_[0].sum), SumOfQuad(rows_[1].sum)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Row& row = rows_[i];
      const float sum = sums[i];
      if (!row.exists) continue;
      // Not a product with 0: NaN in values that the row does not see may have got here.
      const bool empty = sum == 0;
      const float factor = 1.0f / sum;
      const double log2_sum = static_cast<double>(row.max) + static_cast<double>(log2f(sum));
      const int64_t out_row = int64_t{row.row} * sequence_.num_q_heads + row.head;
      if (sequence_.num_splits > 1) {
        StorePartial(i, out_row, empty, factor, log2_sum);
        continue;
      }
      StoreOutput(i, out_row, empty, factor);
      if (sequence_.lse == nullptr || Lane() % 4 != 0) continue;
      double reference = 0;
      if constexpr (kLowRank) {
        reference = row.frame;
      } else if (row.slope != 0) {
        reference = ReferenceBias(sequence_, row.keys, row.row, row.slope);
      }
      sequence_.lse[out_row] = empty ? -INFINITY : static_cast<float>(kLn2 * log2_sum + reference);
    }
  }

  __device__ void StoreOutput(int i, int64_t out_row, bool empty, float factor) const {
    const int head_dim = sequence_.head_dim;
    auto* to = static_cast<unsigned char*>(sequence_.o) + out_row * head_dim * 2;
    const bool pairs = head_dim % 2 == 0 && IsAligned(sequence_.o, 4);
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      const int column = 8 * n + 2 * (Lane() % 4);
      const uint32_t pair =
          empty ? 0 : PackPair<T>(o_[n][2 * i] * factor, o_[n][2 * i + 1] * factor);
      unsigned char* at = to + 2 * column;
      if (pairs) {
        if (column < head_dim) *reinterpret_cast<uint32_t*>(at) = pair;
      } else {
        if (column < head_dim) StoreUnaligned16(at, pair);
        if (column + 1 < head_dim) StoreUnaligned16(at + 2, pair >> 16);
      }
    }
  }

  __device__ void StorePartial(int i, int64_t out_row, bool empty, float factor,
                               double log2_sum) const {
    const int64_t partial_row =
        sequence_.partial_begin + out_row * sequence_.num_splits + item_.split;
    float lse = empty ? -INFINITY : static_cast<float>(log2_sum);
    uint32_t low_word = 0;
    if constexpr (kLowRank) {
      if (!empty) {
        const double absolute = rows_[i].frame / kLn2 + log2_sum;
        lse = static_cast<float>(absolute);
        low_word = __float_as_uint(static_cast<float>(absolute - static_cast<double>(lse)));
      }
    }
    auto* to = reinterpret_cast<float2*>(params_.partial_o + partial_row * kHeadDim);
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      const int column = 8 * n + 2 * (Lane() % 4);
      float2 pair =
          empty ? make_float2(0, 0) : make_float2(o_[n][2 * i] * factor, o_[n][2 * i + 1] * factor);
      if (kLowRank && n < 4) {
        pair.x = WithLastBit(pair.x, low_word >> column);
        pair.y = WithLastBit(pair.y, low_word >> (column + 1));
      }
      to[column / 2] = pair;
    }
    if (Lane() % 4 == 0) params_.partial_lse[partial_row] = lse;
  }

  // A query row of one head, and its running results. Logs are of base 2.
  struct Row {
    KeyRange keys;  // admitted
    int row;
    int head;
    bool exists;
    float max;    // of the scores so far
    float sum;    // of this lane's probabilities
    float slope;  // natural log
    float slope_log2;
    // ALiBi: |position - key| less that of the reference key is max(left - key, key - right).
    int64_t left;
    int64_t right;
    float q_norm;       // |scale q|
    float log2_budget;  // what may be skipped
    // Low rank: the bias, natural log, that scores are relative to.
    double frame;
    int64_t phi_q_begin;
  };

  const AttentionParams& params_;
  const WorkItem item_;
  const SequenceParams& sequence_;
  const int kv_head_;
  const uint32_t tiles_;
  FactorSlice* const factors_;
  int stage_ = 0;
  float scale_;  // softmax_scale * log2(e)
  Row rows_[2];
  uint32_t q_[kSteps][4];
  float o_[kHeadDim / 8][4];
};

// What a low-rank bias needs of shared memory; nothing else does.
struct NoFactors {};

template <typename T, int kHeadDim, bool kLowRank>
__global__ void __launch_bounds__(kThreads, kHeadDim == 128 ? 2 : 3)
    AttentionKernel(const __grid_constant__ AttentionParams params) {
  extern __shared__ __align__(128) char tiles[];
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
