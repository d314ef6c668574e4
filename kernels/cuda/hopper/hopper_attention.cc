#include "kernels/cuda/hopper/hopper_attention.h"

#include "kernels/cuda/hopper/attention_instances.h"

namespace flashbias::cuda::hopper {

cudaError_t LaunchAttention(const HostPlan& plan, DType dtype, int padded_head_dim, int num_sms,
                            cudaStream_t stream) {
  const auto launch = dtype == DType::kFloat16 ? LaunchFloat16 : LaunchBFloat16;
  return launch(plan, padded_head_dim, num_sms, stream);
}

}  // namespace flashbias::cuda::hopper
