// The end of the backward pass: sums of partial gradients of the bias, each in a fixed order.
#ifndef FLASHBIAS_KERNELS_CUDA_BIAS_GRADIENTS_H_
#define FLASHBIAS_KERNELS_CUDA_BIAS_GRADIENTS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace flashbias::cuda {

// `count` values, value n being factor times the sum of `terms` values that lie `term_stride` apart
// from from[n / inner * outer_stride + n % inner] on. Device pointers, fp32.
struct SumJob {
  const float* from;
  float* to;
  int64_t count;
  int64_t inner;
  int64_t outer_stride;
  int64_t terms;
  int64_t term_stride;
  float factor;
};

struct SumParams {
  const SumJob* jobs;  // [num_jobs], device
  int32_t num_jobs;
};

// Asynchronous; does nothing where there are no jobs.
cudaError_t LaunchSums(const SumParams& params, int num_sms, cudaStream_t stream);

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_BIAS_GRADIENTS_H_
