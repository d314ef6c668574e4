#include "kernels/cuda/hopper/attention_instances.h"
#include "kernels/cuda/hopper/attention_kernel.cuh"

namespace flashbias::cuda::hopper {

cudaError_t LaunchBFloat16(const AttentionParams& params, int padded_head_dim, int num_sms,
                           bool after_key_norms, cudaStream_t stream) {
  switch (padded_head_dim) {
    case 32:
      return Launch<__nv_bfloat16, 32>(params, num_sms, after_key_norms, stream);
    case 64:
      return Launch<__nv_bfloat16, 64>(params, num_sms, after_key_norms, stream);
    default:
      return Launch<__nv_bfloat16, 128>(params, num_sms, after_key_norms, stream);
  }
}

}  // namespace flashbias::cuda::hopper
