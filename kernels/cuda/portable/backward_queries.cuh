// dq of 64 query rows of one head, and what they add to the gradients of the bias: the pass over
// queries. A warp has 16 rows and walks over the key tiles that they may need.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_QUERIES_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_QUERIES_CUH_

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
#include "kernels/cuda/portable/store_rows.cuh"
#include "kernels/cuda/portable/tile_copy.cuh"
#include "kernels/cuda/softmax_math.cuh"

namespace flashbias::cuda::portable {

// What the pass computes beside dq.
enum class QueryKind : uint8_t {
  kPlain,          // nothing
  kSlopeGradient,  // dslope_partials, which every sequence wants
  kLowRank,        // the bias is of low rank; dphi_q where a sequence wants it
};

// What fits into registers and shared memory.
template <int kHeadDim, bool kLowRank>
struct QueryPass {
  static constexpr int kColumns = 16;  // keys whose scores are computed at a time
  static constexpr int kBlocksPerSm = kHeadDim == 32 && !kLowRank ? 3 : 2;
  // Two stages of keys and values; the queries and d_o arrive where the second will be.
  static constexpr int kSharedBytes = 4 * TileLayout<kHeadDim>::kBytes;
};

// Shared memory of an item beside its tiles.
template <QueryKind kKind>
struct QueryItemShared {
  float warp_sums[kThreads / 32];
};

template <>
struct QueryItemShared<QueryKind::kLowRank> {
  FactorSlice slice;
  FactorSums probable_factors;
};

// One item while its block computes it; a thread's view.
template <typename T, int kHeadDim, QueryKind kKind>
class QueryItemRun {
 public:
  __device__ QueryItemRun(const BackwardParams& params, const WorkItem& item, char* tiles,
                          QueryItemShared<kKind>& shared)
      : sequence_(params.sequences[item.sequence]),
        forward_(sequence_.forward),
        first_row_(item.q_begin),
        head_(item.head),
        kv_head_(item.head / (forward_.num_q_heads / forward_.num_kv_heads)),
        tiles_(SharedAddress(tiles)),
        shared_(shared) {}

  __device__ void Run() {
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) dq_[n][i] = 0;
    }
    if constexpr (kLowRank) {
      ZeroFactorGradient(FactorGradientOfRows(), forward_.rank);
      ZeroFactorSums(forward_.rank, shared_.probable_factors);
    }
    const KeyRange keys = KeysOfItem();
    if (!keys.empty()) Walk(keys.first / kTileRows, keys.last / kTileRows);
    Store();
  }

 private:
  static constexpr bool kLowRank = kKind == QueryKind::kLowRank;
  static constexpr bool kBiasGradient = kKind != QueryKind::kPlain;
  using Pass = QueryPass<kHeadDim, kLowRank>;
  using Layout = TileLayout<kHeadDim>;

  // A thread's row.
  struct Row {
    KeyRange keys;
    Bends bends;
    float minus_lse;
    float minus_delta;  // times the scale of dS
  };

  // The keys of the tiles that any of the rows may need.
  __device__ KeyRange KeysOfItem() const {
    const int last_row = min(first_row_ + kTileRows, forward_.q_len) - 1;
    KeyRange keys = AdmittedKeys(forward_, first_row_, last_row);
    if (keys.empty() || sequence_.limits == nullptr) return keys;
    const int64_t tiles = sequence_.row_stride / kLimitRows;
    const KeyLimits limits = sequence_.limits[head_ * tiles + first_row_ / kLimitRows];
    // A tile is left out only as a whole.
    if (limits.left >= keys.last || limits.right <= keys.first) return {1, 0};
    keys.first = max(keys.first, limits.left + 1);
    keys.last = min(keys.last, limits.right - 1);
    return keys;
  }

  __device__ uint32_t KeyTileAt(int stage) const { return tiles_ + 2 * stage * Layout::kBytes; }
  __device__ uint32_t ValueTileAt(int stage) const { return KeyTileAt(stage) + Layout::kBytes; }

  __device__ void PrepareRows() {
    scale_ = ToFinite(forward_.softmax_scale * kLog2E);
    const float slope = SlopeOf(forward_, head_);
    const int ds_log2 = GradientScaleLog2(sequence_.magnitudes, kv_head_);
    ds_factor_ = PowerOfTwo(ds_log2);
    ds_inverse_ = PowerOfTwo(-ds_log2);
    minus_slope_log2_ = -ToFinite(slope * kLog2E);
    plain_ = IsShallow(minus_slope_log2_) ? PlainKeyTiles(forward_, first_row_) : PlainTiles{0, -1};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const GradientRow row = MakeGradientRow(sequence_, head_, first_row_ + FragmentRow(i), slope);
      rows_[i] = {row.keys, row.bends, -row.stats.lse, -row.stats.delta * ds_factor_};
    }
  }

  __device__ void Walk(int first_tile, int last_tile) {
    const TilePairCopier<kHeadDim> rows(QueriesAndGradients(sequence_), head_);
    rows.Copy(first_row_ / kTileRows, KeyTileAt(1), ValueTileAt(1));
    const TilePairCopier<kHeadDim> copier(KeysAndValues(forward_), kv_head_);
    copier.Copy(first_tile, KeyTileAt(0), ValueTileAt(0));
    PrepareRows();
    WaitForCopies();
    __syncthreads();
    q_.Load(KeyTileAt(1));
    d_o_.Load(ValueTileAt(1));
    // Everyone has finished with what the next copy overwrites.
    __syncthreads();

    int stage = 0;
    for (int tile = first_tile; true; ++tile) {
      if (tile < last_tile) copier.Copy(tile + 1, KeyTileAt(stage ^ 1), ValueTileAt(stage ^ 1));
      ComputeTile(tile * kTileRows, stage);
      if (tile == last_tile) break;
      WaitForCopies();
      // Also: everyone has finished with the stage that is filled next.
      __syncthreads();
      stage ^= 1;
    }
    Multiply(ds_inverse_, dq_);
    if constexpr (kLowRank) RemoveExcess();
  }

  __device__ void ComputeTile(int first_key, int stage) {
    float bias[kLowRank ? 8 : 1][4];
    // What exponents are relative to: of this tile where the bias is of low rank.
    float offset[2] = {rows_[0].minus_lse, rows_[1].minus_lse};
    if constexpr (kLowRank) {
      double centre_product[2];
      const Factor factor = QueryFactor(forward_);
      const int64_t begin[2] = {FactorBegin(factor, 0), FactorBegin(factor, 1)};
      LowRankBias(factor, begin, KeyFactor(forward_), head_, first_key, shared_.slice, bias,
                  centre_product);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        offset[i] = static_cast<float>(centre_product[i] * kExactLog2E + rows_[i].minus_lse);
      }
    }
    uint32_t ds[4][4];
    uint32_t p[kLowRank ? 4 : 1][4];
    float p_sums[2] = {};
    // The product after these have joined: the compiler would sink its sums to where they do.
    if (plain_.Contain(first_key)) {
      ComputeWeights<false>(first_key, stage, bias, offset, ds, p, p_sums);
    } else {
      ComputeWeights<true>(first_key, stage, bias, offset, ds, p, p_sums);
    }
    AddProduct<T, kHeadDim>(ds, KeyTileAt(stage), 0, dq_);
    if constexpr (kLowRank) {
      if (sequence_.dphi_q == nullptr) return;
      // Of what is multiplied, so that what rounding takes from dS also belongs to the excess.
      float ds_sums[2];
      SumRows<T>(ds, ds_sums);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ds_sums[i] = QuadSum(ds_sums[i]);
        p_sums[i] = QuadSum(p_sums[i]);
        excess_[i] += ds_sums[i];
        mass_[i] += p_sums[i];
      }
      AddFactorGradient<T>(KeyFactor(forward_), head_, first_key, ds, ds_sums, ds_inverse_,
                           shared_.slice, FactorGradientOfRows(), [&](int column) {
                             AddFactorSums(p, p_sums, forward_.rank, column, shared_.slice,
                                           shared_.probable_factors);
                           });
    }
  }

  // dS of the tile, scaled, as A fragments; low rank: P likewise but in bf16, and its sums over
  // this lane's columns.
  template <bool kMasked>
  __device__ void ComputeWeights(int first_key, int stage, const float (&bias)[kLowRank ? 8 : 1][4],
                                 const float (&offset)[2], uint32_t (&ds)[4][4],
                                 uint32_t (&p)[kLowRank ? 4 : 1][4], float (&p_sums)[2]) {
    float left[2];
    float right[2];
    // Columns that a masked row admits.
    int first_column[2];
    int last_column[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto column = static_cast<float>(FragmentColumn());
      left[i] = static_cast<float>(rows_[i].bends.left - first_key) - column;
      // Causal: no key is there.
      right[i] = forward_.causal != 0
                     ? INFINITY
                     : static_cast<float>(rows_[i].bends.right - first_key) - column;
      first_column[i] = rows_[i].keys.first - first_key - FragmentColumn();
      last_column[i] = rows_[i].keys.last - first_key - FragmentColumn();
    }

    const auto distance = [&](int i, int column) {
      const auto key = static_cast<float>(column);
      float result = left[i] - key;
      if constexpr (kMasked) result = fmaxf(result, key - right[i]);
      return result;
    };
    // Of column 0.
    const float row_exponent[2] = {fmaf(minus_slope_log2_, left[0], offset[0]),
                                   fmaf(minus_slope_log2_, left[1], offset[1])};
    const uint32_t keys = ColumnAddress<kHeadDim>(KeyTileAt(stage), 0);
    const uint32_t values = ColumnAddress<kHeadDim>(ValueTileAt(stage), 0);
#pragma unroll
    for (int begin = 0; begin < kTileRows; begin += Pass::kColumns) {
      float scores[Pass::kColumns / 8][4];
      float dp[Pass::kColumns / 8][4];
      MultiplyRows<T, kHeadDim, Pass::kColumns>(q_, keys + begin * Layout::kRowBytes, scores);
      MultiplyRows<T, kHeadDim, Pass::kColumns>(d_o_, values + begin * Layout::kRowBytes, dp);
#pragma unroll
      for (int n = 0; n < Pass::kColumns / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int i = j / 2;
          const int column = begin + 8 * n + j % 2;
          float exponent;
          if constexpr (kLowRank) {
            exponent = fmaf(kLog2E, bias[column / 8][j], offset[i]);
          } else if constexpr (kMasked) {
            exponent = fmaf(minus_slope_log2_, distance(i, column), offset[i]);
          } else {
            exponent = fmaf(-minus_slope_log2_, static_cast<float>(column), row_exponent[i]);
          }
          float weight = Exp2(fmaf(scale_, scores[n][j], exponent));
          float value = weight * fmaf(dp[n][j], ds_factor_, rows_[i].minus_delta);
          if (kMasked && (column < first_column[i] || column > last_column[i])) weight = value = 0;
          scores[n][j] = weight;
          dp[n][j] = value;
          if constexpr (kLowRank) p_sums[i] += weight;
          if constexpr (kKind == QueryKind::kSlopeGradient) {
            // Finite even of a row that admits no key.
            const float d = distance(i, column);
            mass_[i] += weight;
            excess_[i] += value;
            distances_[i] = fmaf(value, d, distances_[i]);
            probable_distances_[i] = fmaf(weight, d, probable_distances_[i]);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < Pass::kColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int step = (begin / 8 + n) / 2;
          const int element = (begin / 8 + n) % 2 * 2 + i;
          ds[step][element] = PackPair<T>(dp[n][2 * i], dp[n][2 * i + 1]);
          if constexpr (kLowRank) {
            p[step][element] = PackPair<__nv_bfloat16>(scores[n][2 * i], scores[n][2 * i + 1]);
          }
        }
      }
    }
  }

  __device__ int64_t FactorBegin(const Factor& factor, int i) const {
    const int row = first_row_ + FragmentRow(i);
    return row < forward_.q_len ? factor.Begin(row, head_) : -1;
  }

  __device__ FactorGradient FactorGradientOfRows() const {
    FactorGradient gradient;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = first_row_ + FragmentRow(i);
      gradient.rows[i] =
          sequence_.dphi_q != nullptr && row < forward_.q_len
              ? sequence_.dphi_q + (row * forward_.num_q_heads + head_) * forward_.rank
              : nullptr;
    }
    return gradient;
  }

  __device__ void Store() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row_ + FragmentRow(i);
      if (row >= forward_.q_len) continue;
      StoreOutput<T, kHeadDim>(sequence_.dq, forward_.head_dim,
                               int64_t{row} * forward_.num_q_heads + head_, false,
                               forward_.softmax_scale, i, dq_);
    }
    if constexpr (kKind == QueryKind::kSlopeGradient) StoreSlopeGradient();
  }

  __device__ void StoreSlopeGradient() {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float excess = ExcessOfMass<T>(QuadSum(mass_[i]), QuadSum(excess_[i]));
      sum += distances_[i] - excess * probable_distances_[i];
      // Distances are less the reference's.
      const int row = first_row_ + FragmentRow(i);
      const int reference =
          ReferenceKey(rows_[i].keys, row + forward_.diagonal, forward_.slopes[head_]);
      const auto distance = static_cast<float>(llabs(row + forward_.exact_diagonal - reference));
      if (excess == 0) sum += excess_[i] * distance;
    }
    // Lanes, then warps, always in this order.
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (Lane() == 0) shared_.warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    const float* sums = shared_.warp_sums;
    sequence_.dslope_partials[head_ * sequence_.dslope_stride + first_row_ / kTileRows] =
        ((sums[0] + sums[1]) + (sums[2] + sums[3])) * ds_inverse_;
  }

  // What dS add up to by rounding, of o in delta and of dS, the row's keys have as P says.
  __device__ void RemoveExcess() const {
    if (sequence_.dphi_q == nullptr) return;
    const float factors[2] = {-ExcessOfMass<T>(mass_[0], excess_[0]) * ds_inverse_,
                              -ExcessOfMass<T>(mass_[1], excess_[1]) * ds_inverse_};
    AddTimesFactorSums(factors, forward_.rank, shared_.probable_factors, FactorGradientOfRows());
  }

  const BackwardSequence& sequence_;
  const SequenceParams& forward_;
  const int first_row_;
  const int head_;
  const int kv_head_;
  const uint32_t tiles_;
  QueryItemShared<kKind>& shared_;
  PlainTiles plain_;
  float scale_;      // softmax_scale * log2(e)
  float ds_factor_;  // what dS is multiplied by
  float ds_inverse_ = 1.0f;
  float minus_slope_log2_;
  // Of each row; kSlopeGradient: this lane's shares. Distances are less that of the row's
  // reference: large positions would blur them.
  float mass_[2] = {};                // sum_j P
  float excess_[2] = {};              // sum_j dS
  float distances_[2] = {};           // sum_j dS |i - j|
  float probable_distances_[2] = {};  // sum_j P |i - j|
  Row rows_[2] = {};                  // as it stays where the item sees no key
  RowOperand<kHeadDim, true> q_;
  RowOperand<kHeadDim, true> d_o_;
  float dq_[kHeadDim / 8][4];
};

template <typename T, int kHeadDim, QueryKind kKind>
__global__ void __launch_bounds__(kThreads,
                                  QueryPass<kHeadDim, kKind == QueryKind::kLowRank>::kBlocksPerSm)
    BackwardQueriesKernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ __align__(256) char tiles[];
  __shared__ QueryItemShared<kKind> shared;
  QueryItemRun<T, kHeadDim, kKind>(params, params.q_items[blockIdx.x], tiles, shared).Run();
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_BACKWARD_QUERIES_CUH_
