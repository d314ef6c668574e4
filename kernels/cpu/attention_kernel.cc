// Forward attention on one task, compiled once per instruction set (Highway's foreach_target) and
// chosen at run time. The story is told in kernels/README.md.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/reference_key.h"
#include "kernels/cpu/workspace.h"

// SSE4 covers every x86-64 of the last fifteen years; AVX2 and AVX-512 are the fast paths. Vectors
// of unknown size cannot be kept in arrays of accumulators.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_kernel.cc"
#include "hwy/foreach_target.h"
// Highway's headers come after foreach_target.
#include "hwy/highway.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/row_group-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashbias::cpu {
namespace HWY_NAMESPACE {

// A task while it is computed.
struct TaskRun {
  const AttentionProblem& problem;
  const PackedSequence& packed;
  const AttentionTask& task;
  const Sequence& sequence;
  const SkipTable* skip_table;
  Workspace& ws;
  int kv_head;
  size_t rank;      // of a low-rank bias, else 0
  int factor_head;  // of phi_k
  size_t num_rows;
  size_t num_groups;
  // Union of the admitted keys over each group's rows.
  std::array<KeyRange, kMaxGroups> group_keys;
};

HWY_INLINE void PrepareAlibiRow(const AttentionProblem& problem, float slope, int64_t position,
                                RowState& row) {
  row.neg_slope_log2 = ToFiniteFloat(-static_cast<double>(slope) * kLog2E);
  row.bound = SkipBound(slope, problem.eps, /*two_sided=*/!problem.mask.causal);
  if (row.keys.begin >= row.keys.end) return;
  const int64_t distance = std::abs(position - ReferenceKey(row.keys, position, slope));
  row.left = position - distance;
  row.right = position + distance;
  row.reference_bias = -static_cast<double>(slope) * static_cast<double>(distance);
}

// <phi_q, centre of the tile> in double.
HWY_INLINE double CentreProduct(const TaskRun& run, const float* HWY_RESTRICT phi_q, int64_t tile) {
  const float* HWY_RESTRICT centre =
      run.packed.FactorCentre(run.factor_head, tile, static_cast<int>(run.rank));
  double sum = 0;
  for (size_t i = 0; i < run.rank; ++i) {
    sum += static_cast<double>(phi_q[i]) * static_cast<double>(centre[i]);
  }
  return sum;
}

// The largest bias that a tile's centre gives the row: scores relative to it are small where the
// softmax mass is.
HWY_INLINE double ReferenceBias(const TaskRun& run, const float* HWY_RESTRICT phi_q,
                                KeyRange keys) {
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t tile = keys.begin / kKeyTile; tile * kKeyTile < keys.end; ++tile) {
    largest = std::max(largest, CentreProduct(run, phi_q, tile));
  }
  return std::isfinite(largest) ? largest : 0;
}

// Fills the row states and packs q.
HWY_INLINE void PrepareRows(TaskRun& run) {
  const AttentionProblem& problem = run.problem;
  const Sequence& sequence = run.sequence;
  Workspace& ws = run.ws;
  const size_t rank = run.rank;
  const float q_factor = ToFiniteFloat(problem.softmax_scale * kLog2E);
  const float* slopes =
      problem.bias_kind == BiasKind::kAlibi ? SlopesOf(problem, run.packed.sequence) : nullptr;
  for (size_t r = 0; r < run.num_rows; ++r) {
    const int head = run.task.head_begin + static_cast<int>(r / run.task.q_count);
    const int64_t q_row = run.task.q_begin + static_cast<int64_t>(r % run.task.q_count);
    PrefetchRow(RowAddress(problem.q, problem.dtype, sequence.q_begin + q_row, problem.num_q_heads,
                           head, problem.head_dim),
                problem.head_dim * SizeOf(problem.dtype));
  }
  alignas(64) float phi_q[kMaxRank];
  for (size_t r = 0; r < run.num_groups * kGroupRows; ++r) {
    // The last group is filled up with copies of the last row, whose results are not read.
    const size_t source = std::min(r, run.num_rows - 1);
    const int head = run.task.head_begin + static_cast<int>(source / run.task.q_count);
    const int64_t q_row = run.task.q_begin + static_cast<int64_t>(source % run.task.q_count);
    const int64_t packed_row = sequence.q_begin + q_row;
    const int64_t position = sequence.query_start + q_row - sequence.key_start;

    RowState& row = ws.rows[r];
    row = RowState{};
    row.out_row = packed_row * problem.num_q_heads + head;
    row.keys = AdmittedKeys(sequence, problem.mask, q_row);
    if (slopes != nullptr) PrepareAlibiRow(problem, slopes[head], position, row);
    if (rank > 0) {
      LoadRow(problem.low_rank.dtype, PhiQueryRow(problem.low_rank, packed_row, head), rank, phi_q);
      row.reference_bias = ReferenceBias(run, phi_q, row.keys);
      std::copy_n(phi_q, rank, ws.phi_q[r].data());
      for (size_t i = 0; i < rank; ++i) phi_q[i] *= static_cast<float>(kLog2E);
    }
    LoadRow(problem.dtype,
            RowAddress(problem.q, problem.dtype, packed_row, problem.num_q_heads, head,
                       problem.head_dim),
            problem.head_dim, ws.row_buffer.get());
    row.q_norm = std::abs(static_cast<double>(problem.softmax_scale)) *
                 static_cast<double>(NormAtLeast(ws.row_buffer.get(), problem.head_dim));
    PackQueryRow(phi_q, rank, ws.row_buffer.get(), problem.head_dim, q_factor, r, ws);
    ws.max_log2[r] = -std::numeric_limits<float>::infinity();
    ws.sum[r] = 0;
  }
  const size_t padded = PaddedHeadDim(problem);
  std::fill_n(ws.o.get(), run.num_groups * kGroupRows * padded, 0.0f);

  for (size_t g = 0; g < run.num_groups; ++g) {
    KeyRange keys;
    for (size_t r = g * kGroupRows; r < (g + 1) * kGroupRows; ++r) {
      const KeyRange& row = ws.rows[r].keys;
      if (row.begin >= row.end) continue;
      keys.begin = keys.begin < keys.end ? std::min(keys.begin, row.begin) : row.begin;
      keys.end = std::max(keys.end, row.end);
    }
    run.group_keys[g] = keys;
  }
}

// Lower bound of a row's log-sum-exp over the keys seen so far, natural log, relative.
HWY_INLINE double LseAtLeast(const Workspace& ws, size_t row) {
  // log2(2^e (1 + f)) >= e + f, read straight off the bits of a float.
  const auto sum = static_cast<float>(ws.sum[row]);
  if (!(sum > 0)) return -std::numeric_limits<double>::infinity();
  const double log2_sum = static_cast<double>(std::bit_cast<int32_t>(sum)) * 0x1p-23 - 127.0;
  return kLn2 * (static_cast<double>(ws.max_log2[row]) + log2_sum);
}

enum class Side { kLeft, kRight };

// True if what is left on this side, from `tile` outwards, holds no mass for any row of the group.
HWY_INLINE bool GroupIsDone(const TaskRun& run, size_t group, Side side, int64_t tile) {
  if (run.skip_table == nullptr) return false;
  const int64_t first = tile * kKeyTile;      // nearest key left on the right side
  const int64_t last = first + kKeyTile - 1;  // nearest key left on the left side
  const double max_k_norm = side == Side::kLeft
                                ? run.skip_table->prefix_max[tile - run.packed.tile_begin]
                                : run.skip_table->suffix_max[tile - run.packed.tile_begin];
  for (size_t r = group * kGroupRows; r < (group + 1) * kGroupRows; ++r) {
    const RowState& row = run.ws.rows[r];
    const bool none_left = side == Side::kLeft ? row.keys.begin > last : row.keys.end <= first;
    if (none_left || row.keys.begin >= row.keys.end) continue;
    const int64_t distance = side == Side::kLeft ? row.left - last : first - row.right;
    if (!row.bound.Negligible(row.q_norm, max_k_norm, static_cast<double>(distance),
                              LseAtLeast(run.ws, r))) {
      return false;
    }
  }
  return true;
}

HWY_INLINE GroupTile DescribeGroupTile(const TaskRun& run, size_t group, int64_t tile) {
  const AttentionProblem& problem = run.problem;
  const int64_t base = tile * kKeyTile;
  GroupTile result{};
  int64_t begin = kKeyTile;
  int64_t end = 0;
  int64_t latest_begin = 0;
  int64_t earliest_end = kKeyTile;
  for (int n = 0; n < kGroupRows; ++n) {
    const RowState& row = run.ws.rows[group * kGroupRows + n];
    int64_t row_begin = std::clamp<int64_t>(row.keys.begin - base, 0, kKeyTile);
    int64_t row_end = std::clamp<int64_t>(row.keys.end - base, 0, kKeyTile);
    if (row_begin >= row_end) row_begin = row_end = 0;
    if (row_begin < row_end) {
      begin = std::min(begin, row_begin);
      end = std::max(end, row_end);
    }
    latest_begin = std::max(latest_begin, row_begin);
    earliest_end = std::min(earliest_end, row_end);
    result.row_begin[n] = static_cast<float>(row_begin);
    result.row_end[n] = static_cast<float>(row_end);
    result.left[n] = static_cast<float>(row.left - base);
    result.right[n] = static_cast<float>(row.right - base);
    result.neg_slope[n] = row.neg_slope_log2;
  }
  result.begin = static_cast<size_t>(begin);
  result.end = static_cast<size_t>(end);
  // Whole panels are computed, so a range that ends inside one is masked too.
  result.masked =
      latest_begin > begin / static_cast<int64_t>(kPanel) * static_cast<int64_t>(kPanel) ||
      earliest_end < static_cast<int64_t>(RoundUp(result.end, kPanel));
  if (problem.bias_kind == BiasKind::kLowRank) {
    for (int n = 0; n < kGroupRows; ++n) {
      const size_t r = group * kGroupRows + n;
      const double product = CentreProduct(run, run.ws.phi_q[r].data(), tile);
      result.constant[n] = static_cast<float>((product - run.ws.rows[r].reference_bias) * kLog2E);
    }
  }
  return result;
}

HWY_INLINE void ComputeGroup(TaskRun& run, size_t group, int64_t tile, const TileData& data) {
  const GroupTile group_tile = DescribeGroupTile(run, group, tile);
  const size_t head_dim = run.problem.head_dim;
  switch (run.problem.bias_kind) {
    case BiasKind::kNone:
      ComputeGroupTile<ScoreBias::kNone>(data, group_tile, group, run.rank, head_dim, run.ws);
      break;
    case BiasKind::kAlibi:
      if (run.problem.mask.causal) {
        ComputeGroupTile<ScoreBias::kAlibiLeft>(data, group_tile, group, run.rank, head_dim,
                                                run.ws);
      } else {
        ComputeGroupTile<ScoreBias::kAlibiTwoSided>(data, group_tile, group, run.rank, head_dim,
                                                    run.ws);
      }
      break;
    case BiasKind::kLowRank:
      ComputeGroupTile<ScoreBias::kLowRank>(data, group_tile, group, run.rank, head_dim, run.ws);
      break;
  }
}

// Whether any row of the group admits a key of [begin, end). The union of its rows' keys may: rows
// of two heads with a window leave a hole in it.
HWY_INLINE bool GroupAdmits(const TaskRun& run, size_t group, int64_t begin, int64_t end) {
  for (size_t r = group * kGroupRows; r < (group + 1) * kGroupRows; ++r) {
    const KeyRange& keys = run.ws.rows[r].keys;
    if (keys.begin < std::min(keys.end, end) && keys.end > begin) return true;
  }
  return false;
}

HWY_INLINE TileData ReadTile(const TaskRun& run, int64_t tile) {
  return {.keys = run.packed.KeyTile(run.kv_head, tile),
          .values = run.packed.ValueTile(run.kv_head, tile),
          .factors = run.rank > 0 ? run.packed.FactorTile(run.factor_head, tile) : nullptr};
}

// Walks the key tiles first, first + step, .. until `last` (inclusive). Returns how many any group
// needed.
HWY_INLINE int64_t WalkTiles(TaskRun& run, Side side, int64_t first, int64_t last) {
  const int64_t step = side == Side::kLeft ? -1 : 1;
  const int64_t count = (last - first) * step + 1;
  std::array<bool, kMaxGroups> done{};
  int64_t computed = 0;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t tile = first + n * step;
    const int64_t begin = tile * kKeyTile;
    const int64_t end = std::min(begin + kKeyTile, run.sequence.kv_len);
    std::array<size_t, kMaxGroups> needed;
    size_t num_needed = 0;
    bool any_left = false;
    for (size_t g = 0; g < run.num_groups; ++g) {
      if (done[g]) continue;
      const KeyRange& keys = run.group_keys[g];
      done[g] = side == Side::kLeft ? keys.begin >= end : keys.end <= begin;
      if (done[g]) continue;
      const bool starts_later = side == Side::kLeft ? keys.end <= begin : keys.begin >= end;
      done[g] = !starts_later && GroupIsDone(run, g, side, tile);
      if (done[g]) continue;
      any_left = true;
      if (!starts_later && GroupAdmits(run, g, begin, end)) needed[num_needed++] = g;
    }
    if (!any_left) break;
    if (num_needed == 0) continue;
    ++computed;
    const TileData data = ReadTile(run, tile);
    for (size_t n_group = 0; n_group < num_needed; ++n_group) {
      ComputeGroup(run, needed[n_group], tile, data);
    }
  }
  return computed;
}

HWY_INLINE void WriteResults(const TaskRun& run) {
  const AttentionProblem& problem = run.problem;
  const Floats d;
  const size_t padded = PaddedHeadDim(problem);
  for (size_t r = 0; r < run.num_rows; ++r) {
    float* HWY_RESTRICT o = run.ws.o.get() + r * padded;
    const double sum = run.ws.sum[r];
    const bool empty = sum == 0;
    const Vec inverse = hn::Set(d, empty ? 0.0f : static_cast<float>(1.0 / sum));
    for (size_t i = 0; i < padded; i += kLanes) {
      // Not a product with 0: rows of the same group may have left NaN here.
      hn::Store(empty ? hn::Zero(d) : hn::Mul(hn::Load(d, o + i), inverse), d, o + i);
    }
    const RowState& row = run.ws.rows[r];
    StoreRow(problem.dtype, o, problem.head_dim,
             static_cast<char*>(problem.o) +
                 row.out_row * problem.head_dim * static_cast<int64_t>(SizeOf(problem.dtype)));
    if (problem.lse == nullptr) continue;
    problem.lse[row.out_row] =
        empty
            ? -std::numeric_limits<float>::infinity()
            : static_cast<float>(kLn2 * (static_cast<double>(run.ws.max_log2[r]) + std::log2(sum)) +
                                 row.reference_bias);
  }
}

TaskStats ComputeAttentionTask(const AttentionProblem& problem, const PackedSequence& packed,
                               const AttentionTask& task, const SkipTable* skip_table,
                               Workspace& ws) {
  TaskRun run{.problem = problem,
              .packed = packed,
              .task = task,
              .sequence = problem.sequences[packed.sequence],
              .skip_table = skip_table,
              .ws = ws,
              .kv_head = task.head_begin / (problem.num_q_heads / problem.num_kv_heads),
              .rank = FactorRank(problem),
              .factor_head = problem.low_rank.phi_k_heads == 1 ? 0 : task.head_begin,
              .num_rows = static_cast<size_t>(task.head_count) * task.q_count,
              .num_groups = 0,
              .group_keys = {}};
  run.num_groups = (run.num_rows + kGroupRows - 1) / kGroupRows;
  PrepareRows(run);

  KeyRange keys;  // union over the task
  for (size_t g = 0; g < run.num_groups; ++g) {
    const KeyRange& group = run.group_keys[g];
    if (group.begin >= group.end) continue;
    keys.begin = keys.begin < keys.end ? std::min(keys.begin, group.begin) : group.begin;
    keys.end = std::max(keys.end, group.end);
  }
  TaskStats stats;
  if (keys.begin < keys.end) {
    // From the tile at the last row's position outwards: first all to the left, then the rest.
    const int64_t first_tile = keys.begin / kKeyTile;
    const int64_t last_tile = (keys.end - 1) / kKeyTile;
    const int64_t position =
        run.sequence.query_start + task.q_begin + task.q_count - 1 - run.sequence.key_start;
    const int64_t start = std::clamp(position, keys.begin, keys.end - 1) / kKeyTile;
    int64_t computed = WalkTiles(run, Side::kLeft, start, first_tile);
    if (start < last_tile) computed += WalkTiles(run, Side::kRight, start + 1, last_tile);
    stats.tiles_computed = computed * task.head_count;
    stats.tiles_skipped = (last_tile - first_tile + 1 - computed) * task.head_count;
  }
  WriteResults(run);
  return stats;
}

void PackTile(const AttentionProblem& problem, const PackedSequence& packed, int64_t tile,
              Workspace& ws) {
  PackKeysAndValues(problem, packed, tile, ws);
  if (packed.factor_head_count > 0) PackFactors(problem, packed, tile, ws);
}

const char* InstructionSet() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace flashbias::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashbias::cpu {

HWY_EXPORT(ComputeAttentionTask);
HWY_EXPORT(PackTile);
HWY_EXPORT(InstructionSet);

TaskStats ComputeAttentionTask(const AttentionProblem& problem, const PackedSequence& packed,
                               const AttentionTask& task, const SkipTable* skip_table,
                               Workspace& workspace) {
  return HWY_DYNAMIC_DISPATCH(ComputeAttentionTask)(problem, packed, task, skip_table, workspace);
}

void PackTile(const AttentionProblem& problem, const PackedSequence& packed, int64_t tile,
              Workspace& workspace) {
  HWY_DYNAMIC_DISPATCH(PackTile)(problem, packed, tile, workspace);
}

const char* InstructionSet() { return HWY_DYNAMIC_DISPATCH(InstructionSet)(); }

}  // namespace flashbias::cpu
#endif  // HWY_ONCE
