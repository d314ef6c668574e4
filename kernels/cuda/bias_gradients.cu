#include "kernels/cuda/bias_gradients.h"

namespace flashbias::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 4;

// Terms first, first + step, ... of the value that begins at `from`. In double: terms of both signs
// may leave little of each other.
__device__ double SumTerms(const float* from, const SumJob& job, int64_t first, int64_t step) {
  double sum = 0;
#pragma unroll 8
  for (int64_t term = first; term < job.terms; term += step) {
    sum += double{from[term * job.term_stride]};
  }
  return sum;
}

// Plus zero, so that no terms give 0 and not -0.
__device__ float Finish(const SumJob& job, double sum) {
  return static_cast<float>(fma(double{job.factor}, sum, 0.0));
}

// The share of thread `first` of `step` threads.
__device__ void SumValues(const SumJob& job, int64_t first, int64_t step) {
  // Terms side by side: a warp reads those of one value. Else values are side by side.
  if (job.term_stride == 1) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int64_t n = first / 32; n < job.count; n += step / 32) {
      const float* from = job.from + n / job.inner * job.outer_stride + n % job.inner;
      double sum = SumTerms(from, job, lane, 32);
      for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      }
      if (lane == 0) job.to[n] = Finish(job, sum);
    }
    return;
  }
  for (int64_t n = first; n < job.count; n += step) {
    const float* from = job.from + n / job.inner * job.outer_stride + n % job.inner;
    job.to[n] = Finish(job, SumTerms(from, job, 0, 1));
  }
}

// Few jobs share the grid, many are taken by a block each.
__global__ void __launch_bounds__(kThreads) SumKernel(const __grid_constant__ SumParams params) {
  const int blocks = max(1, static_cast<int>(gridDim.x) / params.num_jobs);  // of a job
  const int teams = static_cast<int>(gridDim.x) / blocks;
  const int team = static_cast<int>(blockIdx.x) / blocks;
  if (team >= teams) return;
  const int block = static_cast<int>(blockIdx.x) - team * blocks;
  for (int n = team; n < params.num_jobs; n += teams) {
    SumValues(params.jobs[n], int64_t{block} * kThreads + threadIdx.x, int64_t{blocks} * kThreads);
  }
}

}  // namespace

cudaError_t LaunchSums(const SumParams& params, int num_sms, cudaStream_t stream) {
  if (params.num_jobs == 0) return cudaSuccess;
  SumKernel<<<kBlocksPerSm * num_sms, kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace flashbias::cuda
