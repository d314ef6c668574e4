// Copies tensors whose rows or addresses are not multiples of 16 bytes to ones whose are.
//
// Kernels load 16 bytes at a time. A head_dim that is no multiple of 8, or an address that is no
// multiple of 16 bytes, goes through a copy in the workspace first.
#ifndef FLASHBIAS_KERNELS_CUDA_PACK_ROWS_H_
#define FLASHBIAS_KERNELS_CUDA_PACK_ROWS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace flashbias::cuda {

// Device pointers; elements of two bytes.
struct PackJob {
  const void* from;     // [num_vectors, head_dim], contiguous, any alignment
  void* to;             // [num_vectors, padded_dim], 16-byte aligned; the padding becomes zero
  int64_t num_vectors;  // rows * heads
  int32_t head_dim;
  int32_t padded_dim;  // head_dim rounded up to a multiple of 8
};

struct PackParams {
  const PackJob* jobs;  // [num_jobs], device
  int32_t num_jobs;
};

// Asynchronous; does nothing where there are no jobs.
cudaError_t LaunchPackRows(const PackParams& params, int num_sms, cudaStream_t stream);

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_PACK_ROWS_H_
