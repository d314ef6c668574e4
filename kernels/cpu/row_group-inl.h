// One row group (kGroupRows query rows) against one packed key tile: scores, bias, mask, online
// softmax and the product with the values. The hot loop of the CPU backend.
// Included once per Highway target by attention_kernel.cc.
#if defined(FLASHBIAS_KERNELS_CPU_ROW_GROUP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHBIAS_KERNELS_CPU_ROW_GROUP_INL_H_
#undef FLASHBIAS_KERNELS_CPU_ROW_GROUP_INL_H_
#else
#define FLASHBIAS_KERNELS_CPU_ROW_GROUP_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/vector-inl.h"
#include "kernels/cpu/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace flashbias::cpu {
namespace HWY_NAMESPACE {

// How the bias enters a score. Under a causal mask every key stands to the left of its query.
enum class ScoreBias { kNone, kAlibiLeft, kAlibiTwoSided, kLowRank };

// The packed tile that a row group is computed against (packed_sequence.h).
struct TileData {
  const float* keys;
  const float* values;
  const float* factors;  // null without a low-rank bias
};

// What one row group needs to know of the current tile; keys are 0-based in the tile.
struct GroupTile {
  size_t begin;  // the group's admitted keys, as a union over its rows
  size_t end;
  bool masked;  // some row admits less than that
  float row_begin[kGroupRows];
  float row_end[kGroupRows];
  float left[kGroupRows];   // ALiBi: see RowState
  float right[kGroupRows];  // ALiBi: see RowState
  float neg_slope[kGroupRows];
  float constant[kGroupRows];  // low rank: what the centred factors leave out
};

// acc[r][v] += sum_i a[r * kRowStride + i * kStepStride] * b[i * kVecs * kLanes + v * kLanes]
template <int kVecs, size_t kRowStride, size_t kStepStride>
HWY_INLINE void MultiplyAccumulate(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
                                   size_t steps, Vec (&acc)[kGroupRows][kVecs]) {
  const Floats d;
  for (size_t i = 0; i < steps; ++i) {
    Vec columns[kVecs];
    for (int v = 0; v < kVecs; ++v) columns[v] = hn::Load(d, b + v * kLanes);
    for (int r = 0; r < kGroupRows; ++r) {
      const Vec row = hn::Set(d, a[r * kRowStride]);
      for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::MulAdd(row, columns[v], acc[r][v]);
    }
    a += kStepStride;
    b += kVecs * kLanes;
  }
}

// Scores of the group's keys into ws.scores, in the log2 domain; row maxima into row_max.
template <ScoreBias kBias, bool kMasked>
HWY_INLINE void ComputeScores(const float* HWY_RESTRICT q, size_t rank, size_t head_dim,
                              const TileData& data, const GroupTile& tile, Workspace& ws,
                              float* HWY_RESTRICT row_max) {
  const Floats d;
  const Vec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  float* HWY_RESTRICT scores = ws.scores.get();
  alignas(64) float maxima[kGroupRows * kLanes];
  for (int r = 0; r < kGroupRows; ++r) hn::Store(minus_infinity, d, maxima + r * kLanes);

  for (size_t key = tile.begin / kPanel * kPanel; key < tile.end; key += kPanel) {
    Vec acc[kGroupRows][2];
    for (int r = 0; r < kGroupRows; ++r) acc[r][0] = acc[r][1] = hn::Zero(d);
    if constexpr (kBias == ScoreBias::kLowRank) {
      MultiplyAccumulate<2, 1, kGroupRows>(q, data.factors + key * rank, rank, acc);
    }
    MultiplyAccumulate<2, 1, kGroupRows>(q + rank * kGroupRows, data.keys + key * head_dim,
                                         head_dim, acc);

    const Vec first = hn::Iota(d, static_cast<float>(key));
    const Vec keys[2] = {first, hn::Add(first, hn::Set(d, static_cast<float>(kLanes)))};
    for (int r = 0; r < kGroupRows; ++r) {
      Vec max = hn::Load(d, maxima + r * kLanes);
      for (int v = 0; v < 2; ++v) {
        Vec x = acc[r][v];
        if constexpr (kBias == ScoreBias::kAlibiLeft) {
          const Vec distance = hn::Sub(hn::Set(d, tile.left[r]), keys[v]);
          x = hn::MulAdd(hn::Set(d, tile.neg_slope[r]), distance, x);
        } else if constexpr (kBias == ScoreBias::kAlibiTwoSided) {
          const Vec distance = hn::Max(hn::Sub(hn::Set(d, tile.left[r]), keys[v]),
                                       hn::Sub(keys[v], hn::Set(d, tile.right[r])));
          x = hn::MulAdd(hn::Set(d, tile.neg_slope[r]), distance, x);
        } else if constexpr (kBias == ScoreBias::kLowRank) {
          x = hn::Add(x, hn::Set(d, tile.constant[r]));
        }
        if constexpr (kMasked) {
          const auto admitted = hn::And(hn::Ge(keys[v], hn::Set(d, tile.row_begin[r])),
                                        hn::Lt(keys[v], hn::Set(d, tile.row_end[r])));
          x = hn::IfThenElse(admitted, x, minus_infinity);
        }
        hn::Store(x, d, scores + r * kKeyTile + key + v * kLanes);
        max = hn::Max(max, x);
      }
      hn::Store(max, d, maxima + r * kLanes);
    }
  }
  for (int r = 0; r < kGroupRows; ++r) {
    row_max[r] = hn::GetLane(hn::MaxOfLanes(d, hn::Load(d, maxima + r * kLanes)));
  }
}

// Scores -> probabilities relative to the new row maxima; updates ws.max_log2 and ws.sum and gives
// the factors that bring earlier results to the new maxima.
HWY_INLINE void OnlineSoftmax(const GroupTile& tile, size_t first_row,
                              const float* HWY_RESTRICT row_max, Workspace& ws,
                              float* HWY_RESTRICT rescale) {
  const Floats d;
  alignas(64) float reference[RoundUp(kGroupRows, kLanes)] = {};
  alignas(64) float growth[RoundUp(kGroupRows, kLanes)] = {};
  for (int r = 0; r < kGroupRows; ++r) {
    float& running = ws.max_log2[first_row + r];
    const float max = row_max[r] > running || std::isnan(row_max[r]) ? row_max[r] : running;
    // A row that has seen no key yet has no maximum to be relative to.
    reference[r] = max == -std::numeric_limits<float>::infinity() ? 0.0f : max;
    growth[r] = running - reference[r];
    running = max;
  }
  for (size_t r = 0; r < RoundUp(kGroupRows, kLanes); r += kLanes) {
    hn::Store(Exp2(hn::Load(d, growth + r)), d, rescale + r);
  }

  const size_t begin = tile.begin / kPanel * kPanel;
  const size_t end = RoundUp(tile.end, kPanel);
  for (int r = 0; r < kGroupRows; ++r) {
    float* HWY_RESTRICT scores = ws.scores.get() + r * kKeyTile;
    const Vec max = hn::Set(d, reference[r]);
    Vec sum0 = hn::Zero(d);
    Vec sum1 = hn::Zero(d);
    for (size_t key = begin; key < end; key += kPanel) {
      const Vec p0 = Exp2(hn::Sub(hn::Load(d, scores + key), max));
      const Vec p1 = Exp2(hn::Sub(hn::Load(d, scores + key + kLanes), max));
      sum0 = hn::Add(sum0, p0);
      sum1 = hn::Add(sum1, p1);
      hn::Store(p0, d, scores + key);
      hn::Store(p1, d, scores + key + kLanes);
    }
    double& running = ws.sum[first_row + r];
    running = running * rescale[r] + hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  }
}

// o = o * rescale + scores * values for kVecs vectors of columns from `column` on. The tile's own
// sum starts from zero, so rounding grows with the number of tiles and not of keys.
template <int kVecs>
HWY_INLINE void AccumulateOutput(const GroupTile& tile, const float* HWY_RESTRICT values,
                                 const float* HWY_RESTRICT rescale, size_t stride,
                                 const Workspace& ws, float* HWY_RESTRICT o) {
  const Floats d;
  Vec acc[kGroupRows][kVecs];
  for (int r = 0; r < kGroupRows; ++r) {
    for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::Zero(d);
  }
  MultiplyAccumulate<kVecs, kKeyTile, 1>(ws.scores.get() + tile.begin,
                                         values + tile.begin * kVecs * kLanes,
                                         tile.end - tile.begin, acc);
  for (int r = 0; r < kGroupRows; ++r) {
    const Vec factor = hn::Set(d, rescale[r]);
    for (int v = 0; v < kVecs; ++v) {
      float* HWY_RESTRICT at = o + r * stride + v * kLanes;
      hn::Store(hn::MulAdd(hn::Load(d, at), factor, acc[r][v]), d, at);
    }
  }
}

template <ScoreBias kBias>
HWY_INLINE void ComputeGroupTile(const TileData& data, const GroupTile& tile, size_t group,
                                 size_t rank, size_t head_dim, Workspace& ws) {
  alignas(64) float row_max[kGroupRows];
  alignas(64) float rescale[RoundUp(kGroupRows, kLanes)];
  const float* q = ws.q.get() + group * (rank + head_dim) * kGroupRows;
  if (tile.masked) {
    ComputeScores<kBias, true>(q, rank, head_dim, data, tile, ws, row_max);
  } else {
    ComputeScores<kBias, false>(q, rank, head_dim, data, tile, ws, row_max);
  }
  const size_t first_row = group * kGroupRows;
  OnlineSoftmax(tile, first_row, row_max, ws, rescale);

  const size_t padded = RoundUp(head_dim, kLanes);
  float* o = ws.o.get() + first_row * padded;
  size_t column = 0;
  for (; column + kPanel <= padded; column += kPanel) {
    AccumulateOutput<2>(tile, data.values + column * kKeyTile, rescale, padded, ws, o + column);
  }
  if (column < padded) {
    AccumulateOutput<1>(tile, data.values + column * kKeyTile, rescale, padded, ws, o + column);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashbias::cpu
HWY_AFTER_NAMESPACE();

#endif
