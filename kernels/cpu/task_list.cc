#include "kernels/cpu/task_list.h"

#include <algorithm>

#include "kernels/work_estimate.h"

namespace flashbias::cpu {
namespace {

// Heads whose rows share a task: those of one key/value head, as many as fit. A low-rank key factor
// of its own per head is packed with the keys, so such heads share nothing.
int HeadsPerTask(const AttentionProblem& problem, int64_t q_len) {
  if (problem.bias_kind == BiasKind::kLowRank && problem.low_rank.phi_k_heads > 1) return 1;
  const int group = problem.num_q_heads / problem.num_kv_heads;
  return static_cast<int>(
      std::clamp<int64_t>(kShortQueryTile / std::max<int64_t>(q_len, 1), 1, group));
}

double TaskCost(const AttentionProblem& problem, const AttentionTask& task) {
  const int64_t middle = task.q_begin + task.q_count / 2;
  double keys = 0;
  for (int n = 0; n < task.head_count; ++n) {
    keys += ExpectedKeys(problem, task.sequence, task.head_begin + n, middle);
  }
  const int inner = problem.bias_kind == BiasKind::kLowRank ? problem.low_rank.rank : 0;
  return keys * task.q_count * (inner + 2.0 * problem.head_dim);
}

}  // namespace

std::vector<AttentionTask> MakeTaskList(absl::Span<const AttentionProblem> problems) {
  std::vector<AttentionTask> tasks;
  for (size_t p = 0; p < problems.size(); ++p) {
    const AttentionProblem& problem = problems[p];
    const int group = problem.num_q_heads / problem.num_kv_heads;
    for (size_t s = 0; s < problem.sequences.size(); ++s) {
      const int64_t q_len = problem.sequences[s].q_len;
      const int heads_per_task = HeadsPerTask(problem, q_len);
      const int64_t rows = q_len < kLongSequence ? kShortQueryTile : kQueryTile;
      for (int head = 0; head < problem.num_q_heads;) {
        const int left_in_group = group - head % group;
        const int heads = std::min(heads_per_task, left_in_group);
        for (int64_t q = 0; q < q_len; q += rows) {
          AttentionTask task{.problem = static_cast<int32_t>(p),
                             .sequence = static_cast<int32_t>(s),
                             .head_begin = head,
                             .head_count = heads,
                             .q_begin = q,
                             .q_count = static_cast<int32_t>(std::min(rows, q_len - q))};
          task.cost = TaskCost(problem, task);
          tasks.push_back(task);
        }
        head += heads;
      }
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const auto& a, const auto& b) { return a.cost > b.cost; });
  return tasks;
}

}  // namespace flashbias::cpu
