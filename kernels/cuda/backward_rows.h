// The pass before the backward kernels: of every query row the log-sum-exp that its probabilities
// are relative to and <d_o, o>, and from lse and key norms which keys hold no mass.
#ifndef FLASHBIAS_KERNELS_CUDA_BACKWARD_ROWS_H_
#define FLASHBIAS_KERNELS_CUDA_BACKWARD_ROWS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/backward_params.h"
#include "kernels/dtype.h"

namespace flashbias::cuda {

// Blocks of the pass, in the order of the sequences. Block b belongs to the last job with
// first_block <= b.
struct RowsJob {
  int32_t sequence;     // index into BackwardParams::sequences
  int32_t first_block;  // BackwardRowsBlocks() of them
  int32_t slice_heads;  // KeyNormSliceHeads(head_dim)
};

struct BackwardRowsParams {
  const RowsJob* jobs;  // [num_jobs], device: sequences with queries
  int32_t num_jobs;
  int32_t num_blocks;
};

// Thread blocks for a sequence, 0 where there are no queries.
int32_t BackwardRowsBlocks(const SequenceParams& sequence, DType dtype);

// Asynchronous. Writes rows, limits, reach, magnitudes and tile counts. Key norms must have been
// enqueued before it.
cudaError_t LaunchBackwardRows(const BackwardParams& params, const BackwardRowsParams& rows,
                               DType dtype, cudaStream_t stream);

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_BACKWARD_ROWS_H_
