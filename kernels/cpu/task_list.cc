#include "kernels/cpu/task_list.h"

#include <algorithm>

#include "kernels/skip_table.h"
#include "kernels/work_estimate.h"

namespace flashbias::cpu {
namespace {

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

bool HasFactors(const AttentionProblem& problem) { return problem.bias_kind == BiasKind::kLowRank; }

int GroupSize(const AttentionProblem& problem) {
  return problem.num_q_heads / problem.num_kv_heads;
}

// Heads whose rows share a task: those of one key/value head, as many as fit. A low-rank key factor
// of its own per head is packed like a key, so such heads share nothing.
int HeadsPerTask(const AttentionProblem& problem, int64_t q_len) {
  if (HasFactors(problem) && problem.low_rank.phi_k_heads > 1) return 1;
  return static_cast<int>(
      std::clamp<int64_t>(kShortQueryTile / std::max<int64_t>(q_len, 1), 1, GroupSize(problem)));
}

double TaskCost(const AttentionProblem& problem, int64_t sequence, const AttentionTask& task) {
  const int64_t middle = task.q_begin + task.q_count / 2;
  double keys = 0;
  for (int n = 0; n < task.head_count; ++n) {
    keys += ExpectedKeys(problem, sequence, task.head_begin + n, middle);
  }
  const int rank = HasFactors(problem) ? problem.low_rank.rank : 0;
  return keys * task.q_count * (rank + 2.0 * problem.head_dim);
}

// `count` heads of k and v from `begin` on, with the factors that they use.
void SetHeads(const AttentionProblem& problem, int begin, int count, PackedSequence& packed) {
  packed.kv_head_begin = begin;
  packed.kv_head_count = count;
  if (!HasFactors(problem)) return;
  const bool shared = problem.low_rank.phi_k_heads == 1;
  packed.factor_head_begin = shared ? 0 : begin * GroupSize(problem);
  packed.factor_head_count = shared ? 1 : count * GroupSize(problem);
}

}  // namespace

std::vector<PackedSequence> MakePackedSequences(absl::Span<const AttentionProblem> problems,
                                                int64_t max_floats) {
  std::vector<PackedSequence> result;
  for (size_t p = 0; p < problems.size(); ++p) {
    const AttentionProblem& problem = problems[p];
    if (problem.direction != Direction::kForward) continue;
    for (size_t s = 0; s < problem.sequences.size(); ++s) {
      const Sequence& sequence = problem.sequences[s];
      if (sequence.q_len == 0) continue;
      PackedSequence packed{.problem = static_cast<int32_t>(p),
                            .sequence = static_cast<int32_t>(s)};
      const KeyRange keys = AdmittedKeysOfAnyRow(sequence, problem.mask);
      packed.tile_begin = keys.begin / kKeyTile;
      packed.num_tiles = RoundUp(keys.end, kKeyTile) / kKeyTile - packed.tile_begin;
      // Rounded so that every tile starts on a cache line.
      packed.key_tile_floats = RoundUp(problem.head_dim * kKeyTile, kMaxLanes);
      packed.value_tile_floats = RoundUp(problem.head_dim, kMaxLanes) * kKeyTile;
      if (HasFactors(problem)) {
        const int rank = problem.low_rank.rank;
        packed.factor_tile_floats = rank * kKeyTile + RoundUp(rank, kMaxLanes);
      }
      SetHeads(problem, 0, 1, packed);
      const auto heads = static_cast<int>(std::clamp<int64_t>(
          max_floats / std::max<int64_t>(1, packed.TotalFloats()), 1, problem.num_kv_heads));
      for (int head = 0; head < problem.num_kv_heads; head += heads) {
        SetHeads(problem, head, std::min(heads, problem.num_kv_heads - head), packed);
        result.push_back(packed);
      }
    }
  }
  return result;
}

std::vector<AttentionTask> MakeTaskList(absl::Span<const AttentionProblem> problems,
                                        absl::Span<const PackedSequence> packed, size_t begin,
                                        size_t end) {
  std::vector<AttentionTask> tasks;
  for (size_t n = begin; n < end; ++n) {
    const AttentionProblem& problem = problems[packed[n].problem];
    const int group = GroupSize(problem);
    const int64_t q_len = problem.sequences[packed[n].sequence].q_len;
    const int heads_per_task = HeadsPerTask(problem, q_len);
    const int64_t rows = q_len < kLongSequence ? kShortQueryTile : kQueryTile;
    const int head_end = (packed[n].kv_head_begin + packed[n].kv_head_count) * group;
    for (int head = packed[n].kv_head_begin * group; head < head_end;) {
      const int heads = std::min(heads_per_task, group - head % group);
      for (int64_t q = 0; q < q_len; q += rows) {
        AttentionTask task{.packed = static_cast<int32_t>(n),
                           .head_begin = head,
                           .head_count = heads,
                           .q_begin = q,
                           .q_count = static_cast<int32_t>(std::min(rows, q_len - q))};
        task.cost = TaskCost(problem, packed[n].sequence, task);
        tasks.push_back(task);
      }
      head += heads;
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const auto& a, const auto& b) { return a.cost > b.cost; });
  return tasks;
}

}  // namespace flashbias::cpu
