// The pass before attention: running maxima of |k|, from which kernels bound what far keys can hold
// (kernels/skip_table.h has the bound and its proof; the tables have the same meaning there).
#ifndef FLASHBIAS_KERNELS_CUDA_KEY_NORMS_H_
#define FLASHBIAS_KERNELS_CUDA_KEY_NORMS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/dtype.h"

namespace flashbias::cuda {

// The keys of one sequence. Device pointers.
struct KeyNormJob {
  const void*
      k;  // [kv_len, num_kv_heads, head_dim], heads head_stride elements apart, 16-byte aligned
  float* key_norms;       // out: [2, num_kv_heads, norm_tiles], see SequenceParams::key_norms
  unsigned* done_blocks;  // [slices of heads], zero before and after every launch
  int32_t kv_len;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t head_stride;  // a multiple of 8
  int32_t norm_tiles;
  int32_t slice_heads;  // KeyNormSliceHeads(head_dim)
  int32_t first_block;  // block b of the grid belongs to the last job with first_block <= b
};

// Heads whose keys one thread block reads: as many as a warp reads in one go, 16 bytes a lane.
constexpr int32_t KeyNormSliceHeads(int32_t head_dim) {
  int32_t lanes = 1;  // of a head
  while (8 * lanes < head_dim) lanes *= 2;
  return 32 / lanes;
}

struct KeyNormParams {
  const KeyNormJob* jobs;  // [num_jobs], device
  int32_t num_jobs;
  int32_t num_blocks;  // one per norm tile and slice of heads of every job
  KeyNormJob only;     // jobs[0] where it is the only one: in the argument it is nearer
};

// Asynchronous; does nothing where there are no jobs.
cudaError_t LaunchKeyNorms(const KeyNormParams& params, DType dtype, cudaStream_t stream);

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_KEY_NORMS_H_
