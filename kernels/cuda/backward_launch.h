// Enqueues a planned backward pass on a stream; as attention_launch.h.
#ifndef FLASHBIAS_KERNELS_CUDA_BACKWARD_LAUNCH_H_
#define FLASHBIAS_KERNELS_CUDA_BACKWARD_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/backward_plan.h"

namespace flashbias::cuda {

// Copies the bound plan to its workspace and zeroes the counters. Once per Bind.
cudaError_t UploadPlan(const BackwardPlan& plan, cudaStream_t stream);

// Computes every gradient of the plan's problems. May be enqueued any number of times after one
// UploadPlan, one after the other; tile counts add up. Results are bitwise the same every time.
cudaError_t LaunchBackward(const BackwardPlan& plan, cudaStream_t stream);

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_BACKWARD_LAUNCH_H_
