// Cuts a run's problems into tasks, longest first.
//
// Pure function, thread-safe. The cut depends on each problem alone, never on the others in the run
// or on the number of threads, so that results do not either.
#ifndef FLASHBIAS_KERNELS_CPU_TASK_LIST_H_
#define FLASHBIAS_KERNELS_CPU_TASK_LIST_H_

#include <vector>

#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cpu/attention_task.h"

namespace flashbias::cpu {

std::vector<AttentionTask> MakeTaskList(absl::Span<const AttentionProblem> problems);

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_TASK_LIST_H_
