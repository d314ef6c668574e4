#include "kernels/cuda/hopper/backward_instances.h"
#include "kernels/cuda/hopper/backward_kernel.cuh"

namespace flashbias::cuda::hopper {

cudaError_t LaunchBackwardFloat16(const BackwardParams& params, int padded_head_dim,
                                  bool wants_dslopes, int num_sms, cudaStream_t stream) {
  switch (padded_head_dim) {
    case 32:
      return LaunchPasses<__half, 32>(params, wants_dslopes, num_sms, stream);
    case 64:
      return LaunchPasses<__half, 64>(params, wants_dslopes, num_sms, stream);
    default:
      return LaunchPasses<__half, 128>(params, wants_dslopes, num_sms, stream);
  }
}

}  // namespace flashbias::cuda::hopper
