// Cuts a run's problems into what is packed together and what is computed together.
//
// Pure functions, thread-safe. The cut depends on each problem alone, never on the others in the
// run or on the number of threads, so that results do not either.
#ifndef FLASHBIAS_KERNELS_CPU_TASK_LIST_H_
#define FLASHBIAS_KERNELS_CPU_TASK_LIST_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/packed_sequence.h"

namespace flashbias::cpu {

// The sequences of all forward problems, in order, each with as many key/value heads as fit into
// `max_floats` floats of packed memory, at least one; the arrays are not set. Sequences without
// rows are left out.
std::vector<PackedSequence> MakePackedSequences(absl::Span<const AttentionProblem> problems,
                                                int64_t max_floats);

// The tasks that compute packed[begin] .. packed[end - 1], longest first.
std::vector<AttentionTask> MakeTaskList(absl::Span<const AttentionProblem> problems,
                                        absl::Span<const PackedSequence> packed, size_t begin,
                                        size_t end);

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_TASK_LIST_H_
