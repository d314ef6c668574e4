// Gradients of one task, compiled once per instruction set (Highway's foreach_target) and chosen at
// run time. The story is told in kernels/README.md.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "kernels/cpu/backward_task.h"
#include "kernels/cpu/backward_workspace.h"
#include "kernels/cpu/reference_key.h"

// As attention_kernel.cc.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/backward_kernel.cc"
#include "hwy/foreach_target.h"
// Highway's headers come after foreach_target.
#include "hwy/highway.h"
#include "kernels/cpu/backward_group-inl.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashbias::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE const char* QueryRowAddress(const AttentionProblem& problem, const void* tensor,
                                       int64_t row, int64_t head) {
  return RowAddress(tensor, problem.dtype, row, problem.num_q_heads, head, problem.head_dim);
}

HWY_INLINE const char* KeyRowAddress(const AttentionProblem& problem, const void* tensor,
                                     int64_t row, int64_t head) {
  return RowAddress(tensor, problem.dtype, row, problem.num_kv_heads, head, problem.head_dim);
}

HWY_INLINE double DotInDouble(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
                              size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  return sum;
}

// ---- what is known of every query row before the passes

// What decides which keys a row may leave out.
struct RowReach {
  double q_norm;
  double lse;  // natural log, relative, at least
  int64_t left;
  int64_t right;
};

// The first and one beyond the last key tile that the row needs. REQUIRES: it admits a key.
HWY_INLINE KeyRange NeededTiles(const BackwardSequence& sequence, const SkipTable& table,
                                const SkipBound& bound, const RowReach& reach, KeyRange keys) {
  const auto left_is_negligible = [&](int64_t tile) {
    const int64_t distance = reach.left - (tile * kKeyTile + kKeyTile - 1);
    return bound.Negligible(reach.q_norm, table.prefix_max[tile - sequence.key_tile_begin],
                            static_cast<double>(distance), reach.lse);
  };
  const auto right_is_negligible = [&](int64_t tile) {
    const int64_t distance = tile * kKeyTile - reach.right;
    return bound.Negligible(reach.q_norm, table.suffix_max[tile - sequence.key_tile_begin],
                            static_cast<double>(distance), reach.lse);
  };
  // What is left grows towards the reference, and so does what it may hold.
  const int64_t first = keys.begin / kKeyTile;
  const int64_t last = (keys.end - 1) / kKeyTile;
  int64_t begin = first;
  for (int64_t end = last; begin < end;) {
    const int64_t middle = begin + (end - begin) / 2;
    if (left_is_negligible(middle)) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  int64_t end = last + 1;
  for (int64_t low = begin + 1; low < end;) {
    const int64_t middle = low + (end - low) / 2;
    if (right_is_negligible(middle)) {
      end = middle;
    } else {
      low = middle + 1;
    }
  }
  return {begin, end};
}

TaskStats PrepareRows(BackwardSequence& sequence, int head, int64_t tile_begin, int64_t tile_end,
                      BackwardWorkspace& ws) {
  const AttentionProblem& problem = *sequence.problem;
  const Sequence& shape = sequence.shape();
  const size_t head_dim = problem.head_dim;
  const bool alibi = problem.bias_kind == BiasKind::kAlibi;
  const float slope = alibi ? SlopesOf(problem, sequence.sequence)[head] : 0.0f;
  const SkipTable* table =
      sequence.skip_tables.empty()
          ? nullptr
          : &sequence.skip_tables[head / (problem.num_q_heads / problem.num_kv_heads)];
  const SkipBound bound = table != nullptr
                              ? SkipBound(slope, problem.eps, /*two_sided=*/!problem.mask.causal)
                              : SkipBound();
  QueryRow* rows = sequence.rows.data() + head * shape.q_len;
  float* HWY_RESTRICT first = ws.row_buffer.get();
  float* HWY_RESTRICT second = first + kMaxHeadDim;
  TaskStats stats;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t row_end = std::min((tile + 1) * kColumnTile, shape.q_len);
    KeyRange admitted;  // tiles, as a union over the rows
    KeyRange needed;
    for (int64_t q_row = tile * kColumnTile; q_row < row_end; ++q_row) {
      const int64_t packed_row = shape.q_begin + q_row;
      QueryRow& row = rows[q_row];
      row = QueryRow{};
      row.keys = AdmittedKeys(shape, problem.mask, q_row);
      if (row.keys.begin >= row.keys.end) continue;
      LoadRow(problem.dtype, QueryRowAddress(problem, problem.o, packed_row, head), head_dim,
              first);
      LoadRow(problem.dtype, QueryRowAddress(problem, problem.gradients.d_o, packed_row, head),
              head_dim, second);
      row.delta = static_cast<float>(DotInDouble(first, second, head_dim));
      const int64_t position = shape.query_start + q_row - shape.key_start;
      if (alibi) {
        const auto reference = ReferenceKey(row.keys, position, static_cast<double>(slope));
        row.distance = std::abs(position - reference);
      }
      const double lse = static_cast<double>(problem.lse[packed_row * problem.num_q_heads + head]);
      const double relative_lse =
          lse + static_cast<double>(slope) * static_cast<double>(row.distance);
      // A row without mass has no gradient.
      if (lse != -std::numeric_limits<double>::infinity()) row.lse_log2 = relative_lse * kLog2E;

      const KeyRange tiles{row.keys.begin / kKeyTile, (row.keys.end - 1) / kKeyTile + 1};
      KeyRange row_needs = tiles;
      if (table != nullptr) {
        LoadRow(problem.dtype, QueryRowAddress(problem, problem.q, packed_row, head), head_dim,
                first);
        const double q_norm = std::abs(static_cast<double>(problem.softmax_scale)) *
                              static_cast<double>(NormAtLeast(first, head_dim));
        row_needs = NeededTiles(sequence, *table, bound,
                                {.q_norm = q_norm,
                                 .lse = relative_lse - std::abs(lse) * 0x1p-23,
                                 .left = position - row.distance,
                                 .right = position + row.distance},
                                row.keys);
      }
      const bool one_is_empty = admitted.begin >= admitted.end;
      admitted.begin = one_is_empty ? tiles.begin : std::min(admitted.begin, tiles.begin);
      admitted.end = std::max(admitted.end, tiles.end);
      needed.begin = one_is_empty ? row_needs.begin : std::min(needed.begin, row_needs.begin);
      needed.end = std::max(needed.end, row_needs.end);
    }
    // All rows of a tile keep what one of them needs.
    KeyRange& tile_keys = sequence.tile_keys[head * sequence.query_tiles + tile];
    tile_keys = KeyRange{};
    for (int64_t q_row = tile * kColumnTile; q_row < row_end; ++q_row) {
      KeyRange& keys = rows[q_row].keys;
      keys.begin = std::max(keys.begin, needed.begin * kKeyTile);
      keys.end = std::min(keys.end, needed.end * kKeyTile);
      if (keys.begin >= keys.end) {
        keys = KeyRange{};
        continue;
      }
      tile_keys.begin =
          tile_keys.begin < tile_keys.end ? std::min(tile_keys.begin, keys.begin) : keys.begin;
      tile_keys.end = std::max(tile_keys.end, keys.end);
    }
    stats.tiles_computed += needed.end - needed.begin;
    stats.tiles_skipped += (admitted.end - admitted.begin) - (needed.end - needed.begin);
  }
  return stats;
}

SkipTable MakeSkipTableOf(const BackwardSequence& sequence, int kv_head, BackwardWorkspace& ws) {
  const AttentionProblem& problem = *sequence.problem;
  const Sequence& shape = sequence.shape();
  const KeyRange keys = AdmittedKeysOfAnyRow(shape, problem.mask);
  std::vector<float> tile_max;
  for (int64_t begin = keys.begin / kKeyTile * kKeyTile; begin < keys.end; begin += kKeyTile) {
    float largest = 0;
    for (int64_t key = begin; key < std::min(begin + kKeyTile, shape.kv_len); ++key) {
      LoadRow(problem.dtype, KeyRowAddress(problem, problem.k, shape.kv_begin + key, kv_head),
              problem.head_dim, ws.row_buffer.get());
      const float norm = NormAtLeast(ws.row_buffer.get(), problem.head_dim);
      largest = norm <= largest || std::isnan(largest) ? largest : norm;  // NaN stays
    }
    tile_max.push_back(largest);
  }
  return MakeSkipTable(tile_max);
}

// ---- packing

// `count` rows of `width` elements, as a tile: less `centre` (unless null) transposed, and as they
// are (unless `panels` is null). address(n) is that of row n.
template <typename Address>
HWY_INLINE void PackTileOf(DType dtype, size_t count, size_t width, const Address& address,
                           const float* HWY_RESTRICT centre, float* HWY_RESTRICT transposed,
                           float* HWY_RESTRICT panels, BackwardWorkspace& ws) {
  const Floats d;
  const size_t padded = RoundUp(width, kLanes);
  float* HWY_RESTRICT rows = ws.row_buffer.get();
  for (size_t row = 0; row < RoundUp(count, std::max<size_t>(kPanel, 4)); row += 4) {
    const size_t left = std::min<size_t>(count > row ? count - row : 0, 4);
    LoadFourRows(
        dtype, left, width, padded, [&](size_t n) { return address(row + n); }, rows);
    for (size_t column = 0; panels != nullptr && column < padded; column += kPanel) {
      const size_t panel_width = std::min(kPanel, padded - column);
      for (size_t n = 0; n < 4; ++n) {
        float* HWY_RESTRICT to = panels + column * kColumnTile + (row + n) * panel_width;
        for (size_t i = 0; i < panel_width; i += kLanes) {
          hn::Store(hn::Load(d, rows + n * padded + column + i), d, to + i);
        }
      }
    }
    for (size_t n = 0; centre != nullptr && n < left; ++n) {
      for (size_t i = 0; i < width; ++i) rows[n * padded + i] -= centre[i];
    }
    StoreTransposed(rows, padded, width, row, transposed);
  }
}

// Writes `count` values times `factor` into the block at row `row`, from step `begin` of `inner`.
HWY_INLINE void PackBlockRow(const float* HWY_RESTRICT values, size_t count, float factor,
                             size_t row, size_t begin, size_t inner, float* HWY_RESTRICT block) {
  float* HWY_RESTRICT to =
      block + (row / kGroupRows * inner + begin) * kGroupRows + row % kGroupRows;
  for (size_t i = 0; i < count; ++i) to[i * kGroupRows] = values[i] * factor;
}

// ---- one task

struct BackwardRun {
  const BackwardSequence& sequence;
  const AttentionProblem& problem;
  const Sequence& shape;
  const BackwardTask& task;
  BackwardWorkspace& ws;
  size_t head_dim;
  size_t rank;
  size_t num_rows;     // of the block, padded to whole groups
  bool want_factors;   // dphi_q or dphi_k, whichever the pass has
  float score_factor;  // softmax_scale in the log2 domain
};

HWY_INLINE float NegSlope(const BackwardRun& run, int head) {
  if (run.problem.bias_kind != BiasKind::kAlibi) return 0;
  const float slope = SlopesOf(run.problem, run.sequence.sequence)[head];
  return ToFiniteFloat(-static_cast<double>(slope) * kLog2E);
}

// Describes a query row to the kernel; key rows are counted from `base` on, of which there are
// `keys`. `factors`: what the centred factors leave out, natural log.
HWY_INLINE void Describe(const BackwardRun& run, int64_t q_row, const QueryRow& row, int64_t base,
                         int64_t keys, double factors, size_t at, QueryValues& values) {
  const int64_t position = run.shape.query_start + q_row - run.shape.key_start;
  values.begin[at] = static_cast<float>(std::clamp<int64_t>(row.keys.begin - base, 0, keys));
  values.end[at] = static_cast<float>(std::clamp<int64_t>(row.keys.end - base, 0, keys));
  values.left[at] = static_cast<float>(position - row.distance - base);
  values.right[at] = static_cast<float>(position + row.distance - base);
  values.constant[at] = static_cast<float>(factors * kLog2E - row.lse_log2);
  values.delta[at] = row.delta;
}

// A row that stands where there is none.
HWY_INLINE void DescribeNone(size_t at, QueryValues& values) {
  values.begin[at] = values.end[at] = 0;
  values.left[at] = values.right[at] = 0;
  values.constant[at] = values.delta[at] = 0;
}

template <BackwardPass kPass>
HWY_INLINE void ComputeGroupOf(const BackwardRun& run, size_t first_row, const ColumnRange& range,
                               const QueryValues& queries, float neg_slope, BiasSums* bias_sums) {
  const auto compute = [&](auto bias) {
    ComputeBackwardGroup<kPass, decltype(bias)::value>(first_row, run.rank, run.head_dim,
                                                       run.want_factors, range, queries, neg_slope,
                                                       bias_sums, run.ws);
  };
  using std::integral_constant;
  switch (run.problem.bias_kind) {
    case BiasKind::kNone:
      return compute(integral_constant<ScoreBias, ScoreBias::kNone>());
    case BiasKind::kAlibi:
      if (run.problem.mask.causal) {
        return compute(integral_constant<ScoreBias, ScoreBias::kAlibiLeft>());
      }
      return compute(integral_constant<ScoreBias, ScoreBias::kAlibiTwoSided>());
    case BiasKind::kLowRank:
      return compute(integral_constant<ScoreBias, ScoreBias::kLowRank>());
  }
}

// Rows of sums [row][padded width] to rows of a tensor, times `factor`.
HWY_INLINE void WriteScaled(float* HWY_RESTRICT sums, size_t width, float factor, DType dtype,
                            char* to) {
  const Floats d;
  for (size_t i = 0; i < width; i += kLanes) {
    hn::Store(hn::Mul(hn::Load(d, sums + i), hn::Set(d, factor)), d, sums + i);
  }
  StoreRow(dtype, sums, width, to);
}

HWY_INLINE void ZeroSums(const BackwardRun& run) {
  const size_t padded = RoundUp(run.head_dim, kLanes);
  std::fill_n(run.ws.score_sums.get(), run.num_rows * padded, 0.0f);
  std::fill_n(run.ws.gradient_sums.get(), run.num_rows * padded, 0.0f);
  std::fill_n(run.ws.factor_sums.get(), run.num_rows * RoundUp(run.rank, kLanes), 0.0f);
  std::fill_n(run.ws.probable_factors.get(), run.num_rows * RoundUp(run.rank, kLanes), 0.0f);
}

// ---- dk, dv, dphi_k

// Packs the block's keys: k and v, and for `head` the factors less their centre.
HWY_INLINE void PackKeyBlock(const BackwardRun& run) {
  BackwardWorkspace& ws = run.ws;
  const size_t inner = run.rank + run.head_dim;
  float* HWY_RESTRICT row = ws.row_buffer.get();
  for (size_t r = 0; r < run.num_rows; ++r) {
    // The last group is filled up with copies of the last key, whose results are not read.
    const int64_t key = run.shape.kv_begin + run.task.begin +
                        std::min<int64_t>(static_cast<int64_t>(r), run.task.count - 1);
    LoadRow(run.problem.dtype, KeyRowAddress(run.problem, run.problem.k, key, run.task.head),
            run.head_dim, row);
    PackBlockRow(row, run.head_dim, run.score_factor, r, run.rank, inner, ws.score_rows.get());
    LoadRow(run.problem.dtype, KeyRowAddress(run.problem, run.problem.v, key, run.task.head),
            run.head_dim, row);
    PackBlockRow(row, run.head_dim, 1.0f, r, 0, run.head_dim, ws.gradient_rows.get());
  }
}

HWY_INLINE void PackKeyBlockFactors(const BackwardRun& run, int head, float* HWY_RESTRICT centre) {
  BackwardWorkspace& ws = run.ws;
  const LowRankBias& bias = run.problem.low_rank;
  const int64_t first = run.shape.kv_begin + run.task.begin;
  float* HWY_RESTRICT row = ws.row_buffer.get();
  FindFactorCentre(bias, head, first, run.task.count, row, centre);
  for (size_t r = 0; r < run.num_rows; ++r) {
    const int64_t key = first + std::min<int64_t>(static_cast<int64_t>(r), run.task.count - 1);
    LoadRow(bias.dtype, PhiKeyRow(bias, key, head), run.rank, row);
    for (size_t i = 0; i < run.rank; ++i) row[i] -= centre[i];
    PackBlockRow(row, run.rank, static_cast<float>(kLog2E), r, 0, run.rank + run.head_dim,
                 ws.score_rows.get());
  }
}

// Packs `count` query rows of `head` from `q_row` on and describes them.
HWY_INLINE void PackQueryTile(const BackwardRun& run, int head, int64_t q_row, size_t count,
                              const float* HWY_RESTRICT centre, QueryValues& values) {
  const AttentionProblem& problem = run.problem;
  BackwardWorkspace& ws = run.ws;
  const int64_t first = run.shape.q_begin + q_row;
  const auto rows_of = [&](const void* tensor) {
    return [&problem, tensor, first, head](size_t n) {
      return QueryRowAddress(problem, tensor, first + static_cast<int64_t>(n), head);
    };
  };
  PackTileOf(problem.dtype, count, run.head_dim, rows_of(problem.q), nullptr,
             ws.score_columns.get(), ws.score_panels.get(), ws);
  PackTileOf(problem.dtype, count, run.head_dim, rows_of(problem.gradients.d_o), nullptr,
             ws.gradient_columns.get(), ws.gradient_panels.get(), ws);
  const auto factor_row = [&](size_t n) {
    return PhiQueryRow(problem.low_rank, first + static_cast<int64_t>(n), head);
  };
  if (run.rank > 0) {
    PackTileOf(problem.low_rank.dtype, count, run.rank, factor_row, nullptr,
               ws.factor_columns.get(), run.want_factors ? ws.factor_panels.get() : nullptr, ws);
  }
  const QueryRow* rows = run.sequence.RowsOf(head) + q_row;
  for (size_t n = 0; n < kColumnTile; ++n) {
    if (n >= count) {
      DescribeNone(n, values);
      continue;
    }
    double factors = 0;
    if (run.rank > 0) {
      LoadRow(problem.low_rank.dtype, factor_row(n), run.rank, ws.row_buffer.get());
      factors = DotInDouble(ws.row_buffer.get(), centre, run.rank);
    }
    Describe(run, q_row + static_cast<int64_t>(n), rows[n], run.task.begin, run.task.count, factors,
             n, values);
  }
}

// The columns, of `count`, that see a key of the group.
HWY_INLINE ColumnRange ColumnsOf(const QueryValues& queries, size_t count, size_t first_key) {
  const auto group_begin = static_cast<float>(first_key);
  const float group_end = group_begin + static_cast<float>(kGroupRows);
  ColumnRange range{.begin = count, .end = 0, .masked = false};
  for (size_t n = 0; n < count; ++n) {
    if (queries.begin[n] >= queries.end[n]) continue;
    if (queries.begin[n] >= group_end || queries.end[n] <= group_begin) continue;
    range.begin = std::min(range.begin, n);
    range.end = n + 1;
  }
  for (size_t n = range.begin / kPanel * kPanel; n < RoundUp(range.end, kPanel); ++n) {
    range.masked |= queries.begin[n] > group_begin || queries.end[n] < group_end;
  }
  return range;
}

HWY_INLINE void WriteKeyFactors(const BackwardRun& run, int heads, int head) {
  const size_t padded = RoundUp(run.rank, kLanes);
  for (int32_t r = 0; r < run.task.count; ++r) {
    const int64_t row = run.shape.kv_begin + run.task.begin + r;
    std::memcpy(run.sequence.dphi_k + (row * heads + head) * static_cast<int64_t>(run.rank),
                run.ws.factor_sums.get() + r * padded, run.rank * sizeof(float));
  }
}

HWY_INLINE void ComputeKeyBlock(const BackwardRun& run) {
  const AttentionProblem& problem = run.problem;
  const BackwardTask& task = run.task;
  BackwardWorkspace& ws = run.ws;
  const int group_size = problem.num_q_heads / problem.num_kv_heads;
  const bool factors_of_head = run.rank > 0 && problem.low_rank.phi_k_heads > 1;
  alignas(64) float centre[kMaxRank] = {};
  QueryValues queries;
  ZeroSums(run);
  PackKeyBlock(run);
  // One head after the other, so that their sums have one order.
  for (int head = task.head * group_size; head < (task.head + 1) * group_size; ++head) {
    if (run.rank > 0 && (factors_of_head || head == task.head * group_size)) {
      PackKeyBlockFactors(run, head, centre);
    }
    const float neg_slope = NegSlope(run, head);
    const KeyRange* tile_keys = run.sequence.TileKeysOf(head);
    for (int64_t tile = 0; tile < run.sequence.query_tiles; ++tile) {
      const KeyRange& keys = tile_keys[tile];
      if (keys.begin >= std::min(keys.end, task.begin + task.count) || keys.end <= task.begin) {
        continue;
      }
      const int64_t q_row = tile * kColumnTile;
      const auto count =
          static_cast<size_t>(std::min<int64_t>(kColumnTile, run.shape.q_len - q_row));
      PackQueryTile(run, head, q_row, count, centre, queries);
      for (size_t row = 0; row < run.num_rows; row += kGroupRows) {
        const ColumnRange range = ColumnsOf(queries, count, row);
        if (range.begin >= range.end) continue;
        ComputeGroupOf<BackwardPass::kKeys>(run, row, range, queries, neg_slope, nullptr);
      }
    }
    if (run.want_factors && factors_of_head) {
      WriteKeyFactors(run, problem.num_q_heads, head);
      std::fill_n(ws.factor_sums.get(), run.num_rows * RoundUp(run.rank, kLanes), 0.0f);
    }
  }
  if (run.want_factors && !factors_of_head) WriteKeyFactors(run, problem.num_kv_heads, task.head);
  const size_t padded = RoundUp(run.head_dim, kLanes);
  for (int32_t r = 0; r < task.count; ++r) {
    const int64_t row = run.shape.kv_begin + task.begin + r;
    const auto to = [&](void* tensor) {
      return const_cast<char*>(KeyRowAddress(problem, tensor, row, task.head));
    };
    WriteScaled(ws.score_sums.get() + r * padded, run.head_dim, problem.softmax_scale,
                problem.dtype, to(problem.gradients.dk));
    StoreRow(problem.dtype, ws.gradient_sums.get() + r * padded, run.head_dim,
             to(problem.gradients.dv));
  }
}

// ---- dq, dphi_q, slope sums

// Packs the block's query rows: q with its factors, and d_o.
HWY_INLINE void PackQueryBlock(const BackwardRun& run) {
  const AttentionProblem& problem = run.problem;
  BackwardWorkspace& ws = run.ws;
  const size_t inner = run.rank + run.head_dim;
  float* HWY_RESTRICT row = ws.row_buffer.get();
  for (size_t r = 0; r < run.num_rows; ++r) {
    const int64_t at = run.shape.q_begin + run.task.begin +
                       std::min<int64_t>(static_cast<int64_t>(r), run.task.count - 1);
    if (run.rank > 0) {
      LoadRow(problem.low_rank.dtype, PhiQueryRow(problem.low_rank, at, run.task.head), run.rank,
              row);
      PackBlockRow(row, run.rank, static_cast<float>(kLog2E), r, 0, inner, ws.score_rows.get());
    }
    LoadRow(problem.dtype, QueryRowAddress(problem, problem.q, at, run.task.head), run.head_dim,
            row);
    PackBlockRow(row, run.head_dim, run.score_factor, r, run.rank, inner, ws.score_rows.get());
    LoadRow(problem.dtype, QueryRowAddress(problem, problem.gradients.d_o, at, run.task.head),
            run.head_dim, row);
    PackBlockRow(row, run.head_dim, 1.0f, r, 0, run.head_dim, ws.gradient_rows.get());
  }
}

// Packs the tile of keys `tile`; `centre` is that of its factors.
HWY_INLINE void PackKeyColumns(const BackwardRun& run, int64_t tile, size_t count,
                               float* HWY_RESTRICT centre) {
  const AttentionProblem& problem = run.problem;
  BackwardWorkspace& ws = run.ws;
  const int kv_head = run.task.head / (problem.num_q_heads / problem.num_kv_heads);
  const int64_t first = run.shape.kv_begin + tile * kKeyTile;
  const auto rows_of = [&](const void* tensor) {
    return [&problem, tensor, first, kv_head](size_t n) {
      return KeyRowAddress(problem, tensor, first + static_cast<int64_t>(n), kv_head);
    };
  };
  PackTileOf(problem.dtype, count, run.head_dim, rows_of(problem.k), nullptr,
             ws.score_columns.get(), ws.score_panels.get(), ws);
  PackTileOf(problem.dtype, count, run.head_dim, rows_of(problem.v), nullptr,
             ws.gradient_columns.get(), nullptr, ws);
  if (run.rank == 0) return;
  FindFactorCentre(problem.low_rank, run.task.head, first, count, ws.row_buffer.get(), centre);
  PackTileOf(
      problem.low_rank.dtype, count, run.rank,
      [&](size_t n) {
        return PhiKeyRow(problem.low_rank, first + static_cast<int64_t>(n), run.task.head);
      },
      centre, ws.factor_columns.get(), run.want_factors ? ws.factor_panels.get() : nullptr, ws);
}

// The keys of the tile that the group's rows see, and what the kernel needs to know of the rows.
HWY_INLINE ColumnRange DescribeGroup(const BackwardRun& run, size_t first_row, int64_t tile,
                                     const float* HWY_RESTRICT centre, QueryValues& values) {
  const QueryRow* rows = run.sequence.RowsOf(run.task.head);
  float begin = kKeyTile;
  float end = 0;
  float latest_begin = 0;
  float earliest_end = kKeyTile;
  for (size_t n = 0; n < static_cast<size_t>(kGroupRows); ++n) {
    const auto r = static_cast<int64_t>(first_row + n);
    if (r < run.task.count) {
      const int64_t q_row = run.task.begin + r;
      double factors = 0;
      if (run.rank > 0) {
        LoadRow(run.problem.low_rank.dtype,
                PhiQueryRow(run.problem.low_rank, run.shape.q_begin + q_row, run.task.head),
                run.rank, run.ws.row_buffer.get());
        factors = DotInDouble(run.ws.row_buffer.get(), centre, run.rank);
      }
      Describe(run, q_row, rows[q_row], tile * kKeyTile, kKeyTile, factors, n, values);
    } else {
      DescribeNone(n, values);
    }
    if (values.begin[n] < values.end[n]) {
      begin = std::min(begin, values.begin[n]);
      end = std::max(end, values.end[n]);
    }
    latest_begin = std::max(latest_begin, values.begin[n]);
    earliest_end = std::min(earliest_end, values.end[n]);
  }
  ColumnRange range{.begin = static_cast<size_t>(begin), .end = static_cast<size_t>(end)};
  // Whole panels are computed, so a range that ends inside one is masked too.
  const size_t panels_begin = range.begin / kPanel * kPanel;
  range.masked = latest_begin > static_cast<float>(panels_begin) ||
                 earliest_end < static_cast<float>(RoundUp(range.end, kPanel));
  return range;
}

// BiasSums of the block's rows.
struct BlockSums {
  std::array<double, kBlockRows> mass{};
  std::array<double, kBlockRows> excess{};
  std::array<double, kBlockRows> distance{};
  std::array<double, kBlockRows> probable_distance{};
};

// Adds a group's sums to those of its rows, the first of which is first_row.
HWY_INLINE void AddBiasSums(const BiasSums& group, size_t first_row, BlockSums& block) {
  const Floats d;
  const auto sum = [&](const float* lanes) {
    return static_cast<double>(hn::GetLane(hn::SumOfLanes(d, hn::Load(d, lanes))));
  };
  for (size_t r = 0; r < static_cast<size_t>(kGroupRows); ++r) {
    block.mass[first_row + r] += sum(group.mass + r * kLanes);
    block.excess[first_row + r] += sum(group.excess + r * kLanes);
    block.distance[first_row + r] += sum(group.distance + r * kLanes);
    block.probable_distance[first_row + r] += sum(group.probable_distance + r * kLanes);
  }
}

// What of the rounding of o in delta each unit of a row's probability carries. A row's dS sum to 0
// but for that, which large factors, as positions are, would carry into their gradients. Where lse
// counts keys that are not here, those of another shard, dS has no reason to sum to 0: 0.
HWY_INLINE double ExcessOfMass(DType dtype, const BlockSums& sums, size_t row) {
  // With tensors of 16 bits lse may be that of weights rounded as they are.
  const double whole_row = dtype == DType::kFloat32 ? 0x1p-17 : 0x1p-10;
  const double mass = sums.mass[row];
  return std::abs(mass - 1) < whole_row ? sums.excess[row] / mass : 0;
}

HWY_INLINE void WriteQueryBlock(const BackwardRun& run, const BlockSums& bias_sums) {
  const AttentionProblem& problem = run.problem;
  const QueryRow* rows = run.sequence.RowsOf(run.task.head) + run.task.begin;
  const size_t padded = RoundUp(run.head_dim, kLanes);
  const size_t padded_rank = RoundUp(run.rank, kLanes);
  for (int32_t r = 0; r < run.task.count; ++r) {
    float* HWY_RESTRICT sums = run.ws.score_sums.get() + r * padded;
    float* HWY_RESTRICT factor_sums = run.ws.factor_sums.get() + r * padded_rank;
    if (rows[r].keys.begin >= rows[r].keys.end) {
      // Rows of the same group may have left NaN here.
      std::fill_n(sums, padded, 0.0f);
      std::fill_n(factor_sums, padded_rank, 0.0f);
    }
    const int64_t row = run.shape.q_begin + run.task.begin + r;
    WriteScaled(
        sums, run.head_dim, problem.softmax_scale, problem.dtype,
        const_cast<char*>(QueryRowAddress(problem, problem.gradients.dq, row, run.task.head)));
    if (!run.want_factors) continue;
    if (rows[r].keys.begin < rows[r].keys.end) {
      const float* HWY_RESTRICT probable = run.ws.probable_factors.get() + r * padded_rank;
      const double excess = ExcessOfMass(problem.dtype, bias_sums, static_cast<size_t>(r));
      for (size_t i = 0; i < run.rank; ++i) {
        factor_sums[i] = static_cast<float>(static_cast<double>(factor_sums[i]) -
                                            excess * static_cast<double>(probable[i]));
      }
    }
    std::memcpy(run.sequence.dphi_q +
                    (row * problem.num_q_heads + run.task.head) * static_cast<int64_t>(run.rank),
                factor_sums, run.rank * sizeof(float));
  }
}

HWY_INLINE void ComputeQueryBlock(const BackwardRun& run, double* slope_sum) {
  const BackwardTask& task = run.task;
  const QueryRow* rows = run.sequence.RowsOf(task.head) + task.begin;
  KeyRange keys;
  std::array<KeyRange, kMaxBlockGroups> group_keys{};
  for (int32_t r = 0; r < task.count; ++r) {
    if (rows[r].keys.begin >= rows[r].keys.end) continue;
    for (KeyRange* range : {&keys, &group_keys[r / kGroupRows]}) {
      range->begin = range->begin < range->end ? std::min(range->begin, rows[r].keys.begin)
                                               : rows[r].keys.begin;
      range->end = std::max(range->end, rows[r].keys.end);
    }
  }
  ZeroSums(run);
  PackQueryBlock(run);
  const float neg_slope = NegSlope(run, task.head);
  const bool want_slope =
      run.problem.bias_kind == BiasKind::kAlibi && run.problem.gradients.dslopes != nullptr;
  alignas(64) float centre[kMaxRank] = {};
  QueryValues queries;
  const bool want_bias = want_slope || run.want_factors;
  BlockSums block_sums;
  for (int64_t tile = keys.begin / kKeyTile; tile * kKeyTile < keys.end; ++tile) {
    const int64_t begin = tile * kKeyTile;
    const int64_t end = std::min(begin + kKeyTile, run.shape.kv_len);
    bool packed = false;
    for (size_t row = 0; row < run.num_rows; row += kGroupRows) {
      const KeyRange& group = group_keys[row / kGroupRows];
      if (group.begin >= std::min(group.end, end) || group.end <= begin) continue;
      if (!packed) PackKeyColumns(run, tile, static_cast<size_t>(end - begin), centre);
      packed = true;
      const ColumnRange range = DescribeGroup(run, row, tile, centre, queries);
      if (range.begin >= range.end) continue;
      BiasSums bias_sums;
      if (want_bias) std::memset(&bias_sums, 0, sizeof(bias_sums));
      ComputeGroupOf<BackwardPass::kQueries>(run, row, range, queries, neg_slope,
                                             want_bias ? &bias_sums : nullptr);
      if (want_bias) AddBiasSums(bias_sums, row, block_sums);
    }
  }
  WriteQueryBlock(run, block_sums);
  if (!want_slope) return;
  double sum = 0;
  for (int32_t r = 0; r < task.count; ++r) {
    if (rows[r].keys.begin >= rows[r].keys.end) continue;
    // The kernel's distances are less that of the reference.
    const double excess = ExcessOfMass(run.problem.dtype, block_sums, static_cast<size_t>(r));
    sum += block_sums.distance[r] - excess * block_sums.probable_distance[r] +
           (block_sums.excess[r] - excess * block_sums.mass[r]) *
               static_cast<double>(rows[r].distance);
  }
  *slope_sum = sum;
}

void ComputeTask(BackwardSequence& sequence, const BackwardTask& task, BackwardWorkspace& ws) {
  const AttentionProblem& problem = *sequence.problem;
  const bool of_keys = task.pass == BackwardPass::kKeys;
  const BackwardRun run{
      .sequence = sequence,
      .problem = problem,
      .shape = sequence.shape(),
      .task = task,
      .ws = ws,
      .head_dim = static_cast<size_t>(problem.head_dim),
      .rank = FactorRank(problem),
      .num_rows = RoundUp(static_cast<size_t>(task.count), kGroupRows),
      .want_factors = (of_keys ? sequence.dphi_k : sequence.dphi_q) != nullptr,
      .score_factor = ToFiniteFloat(static_cast<double>(problem.softmax_scale) * kLog2E)};
  if (of_keys) {
    ComputeKeyBlock(run);
  } else {
    ComputeQueryBlock(
        run, &sequence.slope_sums[task.head * sequence.query_blocks + task.begin / kBlockRows]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashbias::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashbias::cpu {

HWY_EXPORT(MakeSkipTableOf);
HWY_EXPORT(PrepareRows);
HWY_EXPORT(ComputeTask);

SkipTable MakeKeySkipTable(const BackwardSequence& sequence, int kv_head,
                           BackwardWorkspace& workspace) {
  return HWY_DYNAMIC_DISPATCH(MakeSkipTableOf)(sequence, kv_head, workspace);
}

TaskStats PrepareQueryRows(BackwardSequence& sequence, int head, int64_t tile_begin,
                           int64_t tile_end, BackwardWorkspace& workspace) {
  return HWY_DYNAMIC_DISPATCH(PrepareRows)(sequence, head, tile_begin, tile_end, workspace);
}

void ComputeBackwardTask(BackwardSequence& sequence, const BackwardTask& task,
                         BackwardWorkspace& workspace) {
  HWY_DYNAMIC_DISPATCH(ComputeTask)(sequence, task, workspace);
}

}  // namespace flashbias::cpu
#endif  // HWY_ONCE
