// dk and dv of 64 keys of one key/value head: the pass over keys.
//
// A warp has 16 keys and walks over the query tiles of all heads of the group. Scores are computed
// transposed, keys by queries, so that P and dS are in registers as the A operands of the products
// with d_o and q.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_KEYS_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_KEYS_CUH_

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/backward_params.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/gradient_scale.cuh"
#include "kernels/cuda/portable/backward_low_rank.cuh"
#include "kernels/cuda/portable/backward_tile.cuh"
#include "kernels/cuda/portable/low_rank.cuh"
#include "kernels/cuda/portable/mma.cuh"
#include "kernels/cuda/portable/query_row.cuh"
#include "kernels/cuda/portable/query_tiles.cuh"
#include "kernels/cuda/portable/store_rows.cuh"
#include "kernels/cuda/portable/tile_copy.cuh"
#include "kernels/cuda/softmax_math.cuh"

namespace flashbias::cuda::portable {

// What fits into registers and shared memory.
template <int kHeadDim, bool kLowRank>
struct KeyPass {
  static constexpr bool kKeysInRegisters = kHeadDim < 128;
  static constexpr int kStages = kHeadDim == 128 && kLowRank ? 1 : 2;
  static constexpr int kColumns = 16;  // queries whose scores are computed at a time
  // Queries whose weights are kept until they are multiplied.
  static constexpr int kPart = kHeadDim == 128 && !kLowRank ? 32 : kTileRows;
  static constexpr int kBlocksPerSm = kHeadDim == 32 && !kLowRank ? 3 : 2;
  static constexpr int kSharedBytes =
      (2 * kStages + (kKeysInRegisters ? 0 : 2)) * TileLayout<kHeadDim>::kBytes;
};

// A query as the threads of all keys read it.
struct alignas(16) QueryStats {
  float minus_lse;    // as exponents need it
  float minus_delta;  // times the scale of dS
  float left;         // Bends, less the item's first key
  float right;        // causal: infinity, as no key is there
};

// Shared memory of an item beside its tiles.
template <bool kLowRank>
struct KeyItemShared {
  QueryStats stats[2][kTileRows];
  std::conditional_t<kLowRank, FactorSlice, char> slice;
};

// One item while its block computes it; a thread's view.
template <typename T, int kHeadDim, bool kLowRank>
class KeyItemRun {
 public:
  __device__ KeyItemRun(const BackwardParams& params, const WorkItem& item, char* tiles,
                        KeyItemShared<kLowRank>& shared)
      : sequence_(params.sequences[item.sequence]),
        forward_(sequence_.forward),
        first_key_(item.q_begin),
        kv_head_(item.head),
        tiles_(SharedAddress(tiles)),
        shared_(shared) {}

  __device__ void Run() {
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) dk_[n][i] = dv_[n][i] = 0;
    }
    if constexpr (kLowRank) ZeroFactorGradients();
    const int last_key = min(first_key_ + kTileRows, forward_.kv_len) - 1;
    QueryTiles tiles(sequence_, kv_head_, first_key_, last_key);
    QueryTile tile;
    if (tiles.Next(&tile)) Walk(tiles, tile);
    Store();
  }

 private:
  using Pass = KeyPass<kHeadDim, kLowRank>;
  using Layout = TileLayout<kHeadDim>;
  static constexpr int kSteps = Pass::kPart / 16;
  static constexpr int kLog2Scale = kProbabilityScaleLog2<T>;

  // What depends on the query head.
  struct Head {
    int head;
    float slope;  // natural log
    float minus_slope_log2;
  };

  __device__ static Head MakeHead(const SequenceParams& forward, int head) {
    const float slope = SlopeOf(forward, head);
    return {head, slope, -ToFinite(slope * kLog2E)};
  }

  __device__ uint32_t QueryTileAt(int stage) const { return tiles_ + 2 * stage * Layout::kBytes; }
  __device__ uint32_t GradientTileAt(int stage) const {
    return QueryTileAt(stage) + Layout::kBytes;
  }

  using Copier = TilePairCopier<kHeadDim>;
  __device__ void Copy(const Copier& queries, int tile, int stage) const {
    queries.Copy(tile, QueryTileAt(stage), GradientTileAt(stage));
  }

  // A row of the first 64 threads each. Loads what StoreStats() is the first to look at.
  __device__ GradientRow LoadRow(const QueryTile& tile, float slope) const {
    if (threadIdx.x >= kTileRows) return {};
    const int row = tile.tile * kTileRows + static_cast<int>(threadIdx.x);
    return MakeGradientRow(sequence_, tile.head, row, slope);
  }

  __device__ void StoreStats(const GradientRow& row, int stage) const {
    if (threadIdx.x >= kTileRows) return;
    const bool causal = forward_.causal != 0;
    shared_.stats[stage][threadIdx.x] = {
        kLog2Scale - row.stats.lse, -row.stats.delta * ds_factor_,
        static_cast<float>(row.bends.left - first_key_),
        causal ? INFINITY : static_cast<float>(row.bends.right - first_key_)};
  }

  __device__ void Walk(QueryTiles& tiles, QueryTile tile) {
    scale_ = ToFinite(forward_.softmax_scale * kLog2E);
    plain_ = PlainQueryTiles(forward_, first_key_);
    const int ds_log2 = GradientScaleLog2(sequence_.magnitudes, kv_head_);
    ds_inverse_ = PowerOfTwo(-ds_log2);
    ds_factor_ = PowerOfTwo(ds_log2 - kLog2Scale);

    // Keys and values that go to registers arrive where the second stage will be.
    const uint32_t keys = Pass::kKeysInRegisters ? QueryTileAt(1) : QueryTileAt(Pass::kStages);
    const Copier copier(KeysAndValues(forward_), kv_head_);
    copier.Copy(first_key_ / kTileRows, keys, keys + Layout::kBytes);
    Copier queries(QueriesAndGradients(sequence_), tile.head);
    Copy(queries, tile.tile, 0);
    Head head = MakeHead(forward_, tile.head);
    StoreStats(LoadRow(tile, head.slope), 0);
    WaitForCopies();
    __syncthreads();
    k_.Load(keys);
    v_.Load(keys + Layout::kBytes);
    // Everyone has finished with what the next copy overwrites.
    if constexpr (Pass::kKeysInRegisters) __syncthreads();

    int stage = 0;
    while (true) {
      QueryTile next;
      const bool has_next = tiles.Next(&next);
      Head next_head = head;
      GradientRow next_row = {};
      if (has_next && next.head != head.head) next_head = MakeHead(forward_, next.head);
      // At head_dim 128 registers are too short to keep it.
      if (has_next && (kHeadDim == 128 || next.head != head.head)) {
        queries = Copier(QueriesAndGradients(sequence_), next.head);
      }
      if constexpr (Pass::kStages == 2) {
        if (has_next) {
          Copy(queries, next.tile, stage ^ 1);
          next_row = LoadRow(next, next_head.slope);
        }
      }
      ComputeTile(tile, head, stage);
      if (!has_next) break;
      if constexpr (Pass::kStages == 1) {
        __syncthreads();
        Copy(queries, next.tile, 0);
        StoreStats(LoadRow(next, next_head.slope), 0);
      } else {
        stage ^= 1;
        StoreStats(next_row, stage);
      }
      WaitForCopies();
      // With two stages also: everyone has finished with the stage that is filled next.
      __syncthreads();
      tile = next;
      head = next_head;
    }
    Multiply(PowerOfTwo(-kLog2Scale), dv_);
    Multiply(ds_inverse_, dk_);
  }

  __device__ void ComputeTile(const QueryTile& tile, const Head& head, int stage) {
    const int first_row = tile.tile * kTileRows;
    // Low rank: of each row and tile what the bias is relative to, in two parts.
    float bias[kLowRank ? 8 : 1][4];
    float constant[2][2] = {};
    if constexpr (kLowRank) {
      double centre_product[2];
      const Factor factor = KeyFactor(forward_);
      const int64_t begin[2] = {FactorBegin(factor, head.head, 0),
                                FactorBegin(factor, head.head, 1)};
      LowRankBias(factor, begin, QueryFactor(forward_), head.head, first_row, shared_.slice, bias,
                  centre_product);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const double product = centre_product[i] * kExactLog2E;
        constant[i][0] = ToFinite(static_cast<float>(product));
        constant[i][1] = ToFinite(static_cast<float>(product - constant[i][0]));
      }
    }

    const bool plain = plain_.Contain(first_row);
    uint32_t p[kSteps][4];
    uint32_t ds[kSteps][4];
    float ds_sums[2] = {};
#pragma unroll 1
    for (int part = 0; part < kTileRows; part += Pass::kPart) {
      // Products after these have joined: the compiler would sink their sums to where they do.
      if (plain) {
        ComputeWeights<false>(first_row, part, head, stage, bias, constant, p, ds, ds_sums);
      } else {
        ComputeWeights<true>(first_row, part, head, stage, bias, constant, p, ds, ds_sums);
      }
      AddProduct<T, kHeadDim>(p, GradientTileAt(stage), part, dv_);
      AddProduct<T, kHeadDim>(ds, QueryTileAt(stage), part, dk_);
    }
    if constexpr (kLowRank) {
      if (sequence_.dphi_k == nullptr) return;
      const float sums[2] = {QuadSum(ds_sums[0]), QuadSum(ds_sums[1])};
      AddFactorGradient<T>(QueryFactor(forward_), head.head, first_row, ds, sums, ds_inverse_,
                           shared_.slice, FactorGradientOf(head.head), [](int) {});
    }
  }

  // P and dS of a part of the tile, scaled, as A fragments; low rank: and sums of dS over this
  // lane's columns.
  template <bool kMasked>
  __device__ void ComputeWeights(int first_row, int part, const Head& head, int stage,
                                 const float (&bias)[kLowRank ? 8 : 1][4],
                                 const float (&constant)[2][2], uint32_t (&p)[kSteps][4],
                                 uint32_t (&ds)[kSteps][4], float (&ds_sums)[2]) {
    const uint32_t queries = ColumnAddress<kHeadDim>(QueryTileAt(stage), part);
    const uint32_t gradients = ColumnAddress<kHeadDim>(GradientTileAt(stage), part);
    // Columns that a masked row admits.
    int first_column[2];
    int last_column[2];
    if constexpr (kMasked) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        AdmittedColumns(first_row + part, i, first_column[i], last_column[i]);
    }
#pragma unroll
    for (int column = 0; column < Pass::kPart; column += Pass::kColumns) {
      float scores[Pass::kColumns / 8][4];
      float dp[Pass::kColumns / 8][4];
      MultiplyRows<T, kHeadDim, Pass::kColumns>(k_, queries + column * Layout::kRowBytes, scores);
      MultiplyRows<T, kHeadDim, Pass::kColumns>(v_, gradients + column * Layout::kRowBytes, dp);
#pragma unroll
      for (int n = 0; n < Pass::kColumns / 8; ++n) {
        const int first = column + 8 * n;
        const QueryStats* stats = &shared_.stats[stage][part + first + FragmentColumn()];
        const QueryStats pair[2] = {stats[0], stats[1]};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float p_pair[2];
          float ds_pair[2];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const QueryStats& query = pair[c];
            float exponent;
            if constexpr (kLowRank) {
              exponent = fmaf(kLog2E, bias[first / 8][2 * i + c],
                              (constant[i][0] + query.minus_lse) + constant[i][1]);
            } else {
              const auto key = static_cast<float>(FragmentRow(i));
              float distance = query.left - key;
              if constexpr (kMasked) distance = fmaxf(distance, key - query.right);
              exponent = fmaf(head.minus_slope_log2, distance, query.minus_lse);
            }
            exponent = fmaf(scale_, scores[n][2 * i + c], exponent);
            p_pair[c] = Exp2(exponent);
            ds_pair[c] = p_pair[c] * fmaf(dp[n][2 * i + c], ds_factor_, query.minus_delta);
            if constexpr (kMasked) {
              if (first + c < first_column[i] || first + c > last_column[i]) {
                p_pair[c] = ds_pair[c] = 0;
              }
            }
          }
          if constexpr (kLowRank) ds_sums[i] += ds_pair[0] + ds_pair[1];
          p[first / 16][first / 8 % 2 * 2 + i] = PackPair<T>(p_pair[0], p_pair[1]);
          ds[first / 16][first / 8 % 2 * 2 + i] = PackPair<T>(ds_pair[0], ds_pair[1]);
        }
      }
    }
  }

  // The queries, as columns from this thread's first one on, that see the key of its row i.
  __device__ void AdmittedColumns(int first_row, int i, int& first, int& last) const {
    const int key = first_key_ + FragmentRow(i);
    int64_t first_query = 0;
    int64_t last_query = int64_t{forward_.q_len} - 1;
    if (forward_.causal != 0) first_query = max(first_query, int64_t{key} - forward_.diagonal);
    last_query = min(last_query, int64_t{key} - forward_.window_diagonal);
    const int64_t begin = int64_t{first_row} + FragmentColumn();
    first = static_cast<int>(min(max(first_query - begin, int64_t{-1}), int64_t{kTileRows}));
    last = static_cast<int>(min(max(last_query - begin, int64_t{-1}), int64_t{kTileRows}));
  }

  __device__ int64_t FactorBegin(const Factor& factor, int head, int i) const {
    const int key = first_key_ + FragmentRow(i);
    return key < forward_.kv_len ? factor.Begin(key, head) : -1;
  }

  __device__ FactorGradient FactorGradientOf(int head) const {
    FactorGradient gradient;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t key = first_key_ + FragmentRow(i);
      gradient.rows[i] =
          sequence_.dphi_k != nullptr && key < forward_.kv_len
              ? sequence_.dphi_k + (key * forward_.num_q_heads + head) * forward_.rank
              : nullptr;
    }
    return gradient;
  }

  __device__ void ZeroFactorGradients() const {
    const int heads = forward_.num_q_heads / forward_.num_kv_heads;
    for (int head = kv_head_ * heads; head < (kv_head_ + 1) * heads; ++head) {
      ZeroFactorGradient(FactorGradientOf(head), forward_.rank);
    }
  }

  __device__ void Store() const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = first_key_ + FragmentRow(i);
      if (key >= forward_.kv_len) continue;
      const int64_t row = int64_t{key} * forward_.num_kv_heads + kv_head_;
      StoreOutput<T, kHeadDim>(sequence_.dk, forward_.head_dim, row, false, forward_.softmax_scale,
                               i, dk_);
      StoreOutput<T, kHeadDim>(sequence_.dv, forward_.head_dim, row, false, 1.0f, i, dv_);
    }
  }

  const BackwardSequence& sequence_;
  const SequenceParams& forward_;
  const int first_key_;
  const int kv_head_;
  const uint32_t tiles_;
  KeyItemShared<kLowRank>& shared_;
  PlainTiles plain_;
  float scale_;       // softmax_scale * log2(e)
  float ds_factor_;   // what dS is multiplied by, for probabilities that are
  float ds_inverse_;  // what brings sums of dS back
  RowOperand<kHeadDim, Pass::kKeysInRegisters> k_;
  RowOperand<kHeadDim, Pass::kKeysInRegisters> v_;
  float dk_[kHeadDim / 8][4];
  float dv_[kHeadDim / 8][4];
};

template <typename T, int kHeadDim, bool kLowRank>
__global__ void __launch_bounds__(kThreads, KeyPass<kHeadDim, kLowRank>::kBlocksPerSm)
    BackwardKeysKernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ __align__(256) char tiles[];
  __shared__ KeyItemShared<kLowRank> shared;
  KeyItemRun<T, kHeadDim, kLowRank>(params, params.kv_items[blockIdx.x], tiles, shared).Run();
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_KEYS_CUH_
