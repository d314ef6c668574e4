// The backward problems of a run, from key norms to the sums of partial gradients.
#ifndef FLASHBIAS_KERNELS_CPU_BACKWARD_RUN_H_
#define FLASHBIAS_KERNELS_CPU_BACKWARD_RUN_H_

#include <cstddef>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "kernels/attention_backend.h"
#include "kernels/attention_problem.h"
#include "kernels/cpu/backward_workspace.h"

namespace flashbias::cpu {

// Scratch memory that RunBackward takes for a problem beside its workspaces, in bytes: some per
// query row and head, and where heads share a factor what each of them contributes to its gradient.
double BackwardScratchBytes(const AttentionProblem& problem);

// Calls work(item, worker) for every item below `count` and returns when all are done; no two calls
// with the same worker overlap.
using ForEachItem =
    absl::FunctionRef<void(size_t count, absl::FunctionRef<void(size_t item, size_t worker)> work)>;

// Computes all gradients of the backward problems and adds to their stats; other problems are left
// alone. One workspace for each worker. The cut depends on each problem alone, and sums have one
// order: results are the same bits for any number of threads and any batch. Throws bad_alloc.
void RunBackward(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
                 absl::Span<BackwardWorkspace> workspaces, ForEachItem for_each);

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_BACKWARD_RUN_H_
