// One group of a block's rows against one tile of columns: probabilities, their gradients and the
// products with the tile. The hot loop of the backward pass.
// Included once per Highway target by backward_kernel.cc.
#if defined(FLASHBIAS_KERNELS_CPU_BACKWARD_GROUP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHBIAS_KERNELS_CPU_BACKWARD_GROUP_INL_H_
#undef FLASHBIAS_KERNELS_CPU_BACKWARD_GROUP_INL_H_
#else
#define FLASHBIAS_KERNELS_CPU_BACKWARD_GROUP_INL_H_
#endif

#include <limits>

#include "kernels/cpu/backward_task.h"
#include "kernels/cpu/backward_workspace.h"
#include "kernels/cpu/row_group-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashbias::cpu {
namespace HWY_NAMESPACE {

// What the kernel needs to know of a query row; keys are relative to the block's or tile's first.
// Arrays: the group's rows in one pass, the tile's columns in the other.
struct QueryValues {
  alignas(64) float begin[kColumnTile];  // the keys that count
  alignas(64) float end[kColumnTile];
  alignas(64) float left[kColumnTile];  // ALiBi: see RowState
  alignas(64) float right[kColumnTile];
  alignas(64) float constant[kColumnTile];  // less lse, log2
  alignas(64) float delta[kColumnTile];
};

// What a group is multiplied with.
struct ColumnRange {
  size_t begin;  // columns that matter
  size_t end;
  bool masked;  // not for all pairs of a row and a column, whole panels taken
};

// ALiBi's distances of row r and the columns from `column` on.
template <BackwardPass kPass, ScoreBias kBias>
HWY_INLINE Vec DistanceOf(const QueryValues& queries, size_t r, size_t column, Vec key) {
  const Floats d;
  if constexpr (kPass == BackwardPass::kQueries) {
    const Vec left = hn::Sub(hn::Set(d, queries.left[r]), key);
    if constexpr (kBias == ScoreBias::kAlibiLeft) return left;
    return hn::Max(left, hn::Sub(key, hn::Set(d, queries.right[r])));
  } else {
    const Vec left = hn::Sub(hn::Load(d, queries.left + column), key);
    if constexpr (kBias == ScoreBias::kAlibiLeft) return left;
    return hn::Max(left, hn::Sub(key, hn::Load(d, queries.right + column)));
  }
}

// One value of each query, for row r and the columns from `column` on.
template <BackwardPass kPass>
HWY_INLINE Vec ValueOf(const float* HWY_RESTRICT values, size_t r, size_t column) {
  const Floats d;
  if constexpr (kPass == BackwardPass::kQueries) return hn::Set(d, values[r]);
  return hn::Load(d, values + column);
}

// The keys of row r and the columns from `column` on; `first_key` is the group's.
template <BackwardPass kPass>
HWY_INLINE Vec KeyOf(size_t first_key, size_t r, size_t column) {
  const Floats d;
  if constexpr (kPass == BackwardPass::kQueries) return hn::Iota(d, static_cast<float>(column));
  return hn::Set(d, static_cast<float>(first_key + r));
}

// ws.p = 2^(score - lse)
template <BackwardPass kPass, ScoreBias kBias, bool kMasked>
HWY_INLINE void ComputeProbabilities(const float* HWY_RESTRICT rows, size_t rank, size_t head_dim,
                                     const ColumnRange& range, const QueryValues& queries,
                                     size_t first_key, float neg_slope, BackwardWorkspace& ws) {
  const Floats d;
  for (size_t column = range.begin / kPanel * kPanel; column < range.end; column += kPanel) {
    Vec acc[kGroupRows][2];
    for (int r = 0; r < kGroupRows; ++r) acc[r][0] = acc[r][1] = hn::Zero(d);
    MultiplyAccumulate<2, 1, kGroupRows>(rows + rank * kGroupRows,
                                         ws.score_columns.get() + column * head_dim, head_dim, acc);
    if constexpr (kBias == ScoreBias::kLowRank) {
      MultiplyAccumulate<2, 1, kGroupRows>(rows, ws.factor_columns.get() + column * rank, rank,
                                           acc);
    }
    for (int r = 0; r < kGroupRows; ++r) {
      for (int v = 0; v < 2; ++v) {
        const size_t at = column + v * kLanes;
        const Vec key = KeyOf<kPass>(first_key, r, at);
        Vec x = acc[r][v];
        if constexpr (kBias == ScoreBias::kAlibiLeft || kBias == ScoreBias::kAlibiTwoSided) {
          x = hn::MulAdd(hn::Set(d, neg_slope), DistanceOf<kPass, kBias>(queries, r, at, key), x);
        }
        x = hn::Add(x, ValueOf<kPass>(queries.constant, r, at));
        if constexpr (kMasked) {
          const auto admitted = hn::And(hn::Ge(key, ValueOf<kPass>(queries.begin, r, at)),
                                        hn::Lt(key, ValueOf<kPass>(queries.end, r, at)));
          x = hn::IfThenElse(admitted, x, hn::Set(d, -std::numeric_limits<float>::infinity()));
        }
        hn::Store(Exp2(x), d, ws.p.get() + r * kColumnTile + at);
      }
    }
  }
}

// Of a row's columns, what the gradient of the bias is made of. Distances are relative to the
// reference.
struct BiasSums {
  alignas(64) float mass[kGroupRows * kLanes];               // sum_j P
  alignas(64) float excess[kGroupRows * kLanes];             // sum_j dS
  alignas(64) float distance[kGroupRows * kLanes];           // ALiBi: sum_j dS |i - j|
  alignas(64) float probable_distance[kGroupRows * kLanes];  // ALiBi: sum_j P |i - j|
};

// ws.d_logit = ws.p (product - delta); adds to `bias_sums` unless it is null.
template <BackwardPass kPass, ScoreBias kBias, bool kBiasSums>
HWY_INLINE void ComputeScoreGradients(const float* HWY_RESTRICT rows, size_t head_dim,
                                      const ColumnRange& range, const QueryValues& queries,
                                      BiasSums* HWY_RESTRICT bias_sums, BackwardWorkspace& ws) {
  const Floats d;
  for (size_t column = range.begin / kPanel * kPanel; column < range.end; column += kPanel) {
    Vec acc[kGroupRows][2];
    for (int r = 0; r < kGroupRows; ++r) acc[r][0] = acc[r][1] = hn::Zero(d);
    MultiplyAccumulate<2, 1, kGroupRows>(rows, ws.gradient_columns.get() + column * head_dim,
                                         head_dim, acc);
    for (int r = 0; r < kGroupRows; ++r) {
      for (int v = 0; v < 2; ++v) {
        const size_t at = column + v * kLanes;
        const Vec p = hn::Load(d, ws.p.get() + r * kColumnTile + at);
        const Vec d_logit = hn::Mul(p, hn::Sub(acc[r][v], ValueOf<kPass>(queries.delta, r, at)));
        hn::Store(d_logit, d, ws.d_logit.get() + r * kColumnTile + at);
        if constexpr (kBiasSums) {
          float* HWY_RESTRICT mass = bias_sums->mass + r * kLanes;
          float* HWY_RESTRICT excess = bias_sums->excess + r * kLanes;
          hn::Store(hn::Add(hn::Load(d, mass), p), d, mass);
          hn::Store(hn::Add(hn::Load(d, excess), d_logit), d, excess);
          if constexpr (kBias == ScoreBias::kAlibiLeft || kBias == ScoreBias::kAlibiTwoSided) {
            const Vec distance = DistanceOf<kPass, kBias>(queries, r, at, KeyOf<kPass>(0, r, at));
            float* HWY_RESTRICT weighted = bias_sums->distance + r * kLanes;
            float* HWY_RESTRICT probable = bias_sums->probable_distance + r * kLanes;
            hn::Store(hn::MulAdd(d_logit, distance, hn::Load(d, weighted)), d, weighted);
            hn::Store(hn::MulAdd(p, distance, hn::Load(d, probable)), d, probable);
          }
        }
      }
    }
  }
}

// sums += weights * panels for kVecs vectors of columns. The tile's own sum starts from zero, so
// rounding grows with the number of tiles and not of columns.
template <int kVecs>
HWY_INLINE void AddProductPanel(const float* HWY_RESTRICT weights, const float* HWY_RESTRICT panel,
                                const ColumnRange& range, size_t stride, float* HWY_RESTRICT sums) {
  const Floats d;
  Vec acc[kGroupRows][kVecs];
  for (int r = 0; r < kGroupRows; ++r) {
    for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::Zero(d);
  }
  MultiplyAccumulate<kVecs, kColumnTile, 1>(
      weights + range.begin, panel + range.begin * kVecs * kLanes, range.end - range.begin, acc);
  for (int r = 0; r < kGroupRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      float* HWY_RESTRICT at = sums + r * stride + v * kLanes;
      hn::Store(hn::Add(hn::Load(d, at), acc[r][v]), d, at);
    }
  }
}

// `width` columns of the result, padded to whole vectors.
HWY_INLINE void AddProduct(const float* HWY_RESTRICT weights, const float* HWY_RESTRICT panels,
                           const ColumnRange& range, size_t width, float* HWY_RESTRICT sums) {
  const size_t padded = RoundUp(width, kLanes);
  size_t column = 0;
  for (; column + kPanel <= padded; column += kPanel) {
    AddProductPanel<2>(weights, panels + column * kColumnTile, range, padded, sums + column);
  }
  if (column < padded) {
    AddProductPanel<1>(weights, panels + column * kColumnTile, range, padded, sums + column);
  }
}

// Rows [first_row, first_row + kGroupRows) of the block against the tile in `ws`. `bias_sums` may
// be null.
template <BackwardPass kPass, ScoreBias kBias>
HWY_INLINE void ComputeBackwardGroup(size_t first_row, size_t rank, size_t head_dim,
                                     bool want_factors, const ColumnRange& range,
                                     const QueryValues& queries, float neg_slope,
                                     BiasSums* bias_sums, BackwardWorkspace& ws) {
  const float* score_rows = ws.score_rows.get() + first_row * (rank + head_dim);
  const float* gradient_rows = ws.gradient_rows.get() + first_row * head_dim;
  if (range.masked) {
    ComputeProbabilities<kPass, kBias, true>(score_rows, rank, head_dim, range, queries, first_row,
                                             neg_slope, ws);
  } else {
    ComputeProbabilities<kPass, kBias, false>(score_rows, rank, head_dim, range, queries, first_row,
                                              neg_slope, ws);
  }
  if (kPass == BackwardPass::kQueries && bias_sums != nullptr) {
    ComputeScoreGradients<kPass, kBias, kPass == BackwardPass::kQueries>(
        gradient_rows, head_dim, range, queries, bias_sums, ws);
  } else {
    ComputeScoreGradients<kPass, kBias, false>(gradient_rows, head_dim, range, queries, nullptr,
                                               ws);
  }
  const size_t padded = RoundUp(head_dim, kLanes);
  if constexpr (kPass == BackwardPass::kKeys) {
    AddProduct(ws.p.get(), ws.gradient_panels.get(), range, head_dim,
               ws.gradient_sums.get() + first_row * padded);
  }
  AddProduct(ws.d_logit.get(), ws.score_panels.get(), range, head_dim,
             ws.score_sums.get() + first_row * padded);
  if (want_factors) {
    AddProduct(ws.d_logit.get(), ws.factor_panels.get(), range, rank,
               ws.factor_sums.get() + first_row * RoundUp(rank, kLanes));
    if constexpr (kPass == BackwardPass::kQueries) {
      AddProduct(ws.p.get(), ws.factor_panels.get(), range, rank,
                 ws.probable_factors.get() + first_row * RoundUp(rank, kLanes));
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashbias::cpu
HWY_AFTER_NAMESPACE();

#endif
