// The backward kernels for every GPU from sm_80 on: mma.sync, cp.async; low-rank biases too.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_PORTABLE_BACKWARD_H_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_PORTABLE_BACKWARD_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/backward_params.h"
#include "kernels/dtype.h"

namespace flashbias::cuda::portable {

// Keys of a kv item, query rows of a q item.
inline constexpr int kKvItemKeys = 64;
inline constexpr int kQItemRows = 64;

// Both passes, after LaunchBackwardRows on the same stream. Asynchronous. `padded_head_dim` is 32,
// 64 or 128, at least every sequence's head_dim. `low_rank`: every sequence has factors; `dslopes`:
// every one wants dslope_partials, else none does.
cudaError_t LaunchBackward(const BackwardParams& params, DType dtype, int padded_head_dim,
                           bool low_rank, bool dslopes, int num_sms, cudaStream_t stream);

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_PORTABLE_BACKWARD_H_
