#include "kernels/cuda/hopper/attention_instances.h"
#include "kernels/cuda/hopper/attention_kernel.cuh"

namespace flashbias::cuda::hopper {

cudaError_t LaunchBFloat16(const HostPlan& plan, int padded_head_dim, int num_sms,
                           cudaStream_t stream) {
  switch (padded_head_dim) {
    case 32:
      return Launch<__nv_bfloat16, 32>(plan, num_sms, stream);
    case 64:
      return Launch<__nv_bfloat16, 64>(plan, num_sms, stream);
    default:
      return Launch<__nv_bfloat16, 128>(plan, num_sms, stream);
  }
}

}  // namespace flashbias::cuda::hopper
