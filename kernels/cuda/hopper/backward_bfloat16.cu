#include "kernels/cuda/hopper/backward_instances.h"
#include "kernels/cuda/hopper/backward_kernel.cuh"

namespace flashbias::cuda::hopper {

cudaError_t LaunchBackwardBFloat16(const BackwardParams& params, int padded_head_dim,
                                   bool wants_dslopes, int num_sms, cudaStream_t stream) {
  switch (padded_head_dim) {
    case 32:
      return LaunchPasses<__nv_bfloat16, 32>(params, wants_dslopes, num_sms, stream);
    case 64:
      return LaunchPasses<__nv_bfloat16, 64>(params, wants_dslopes, num_sms, stream);
    default:
      return LaunchPasses<__nv_bfloat16, 128>(params, wants_dslopes, num_sms, stream);
  }
}

}  // namespace flashbias::cuda::hopper
