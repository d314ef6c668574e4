// The instantiations of the Hopper backward kernels, one dtype a file; hopper_backward.cc picks
// among them.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_INSTANCES_H_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_INSTANCES_H_

#include "kernels/cuda/hopper/hopper_backward.h"

namespace flashbias::cuda::hopper {

// As hopper_backward.h's LaunchBackward, for one dtype.
cudaError_t LaunchBackwardFloat16(const BackwardParams& params, int padded_head_dim,
                                  bool wants_dslopes, int num_sms, cudaStream_t stream);
cudaError_t LaunchBackwardBFloat16(const BackwardParams& params, int padded_head_dim,
                                   bool wants_dslopes, int num_sms, cudaStream_t stream);

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_INSTANCES_H_
