// Enqueues planned attention on a stream.
//
// Both calls return at once, allocate nothing and wait for nothing; work is ordered by `stream`.
// Errors are those of the launches themselves; what goes wrong on the device shows at a later call,
// as always with CUDA. Thread-safe for different plans and workspaces. REQUIRES: the device of the
// plan is the calling thread's current one, and `stream` belongs to it.
#ifndef FLASHBIAS_KERNELS_CUDA_ATTENTION_LAUNCH_H_
#define FLASHBIAS_KERNELS_CUDA_ATTENTION_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/attention_plan.h"

namespace flashbias::cuda {

// Copies the bound plan to its workspace and zeroes the counters. Once per Bind.
cudaError_t UploadPlan(const AttentionPlan& plan, cudaStream_t stream);

// Computes every o and lse of the plan's problems. May be enqueued any number of times after one
// UploadPlan, one after the other; tile counts add up. Results are bitwise the same every time.
cudaError_t LaunchAttention(const AttentionPlan& plan, cudaStream_t stream);

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_ATTENTION_LAUNCH_H_
