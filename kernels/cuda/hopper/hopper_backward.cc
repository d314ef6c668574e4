#include "kernels/cuda/hopper/hopper_backward.h"

#include "kernels/cuda/hopper/backward_instances.h"

namespace flashbias::cuda::hopper {

cudaError_t LaunchBackward(const BackwardParams& params, DType dtype, int padded_head_dim,
                           bool wants_dslopes, int num_sms, cudaStream_t stream) {
  const auto launch = dtype == DType::kFloat16 ? LaunchBackwardFloat16 : LaunchBackwardBFloat16;
  return launch(params, padded_head_dim, wants_dslopes, num_sms, stream);
}

}  // namespace flashbias::cuda::hopper
