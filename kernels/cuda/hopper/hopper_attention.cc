#include "kernels/cuda/hopper/hopper_attention.h"

#include "kernels/cuda/hopper/attention_instances.h"

namespace flashbias::cuda::hopper {

cudaError_t LaunchAttention(const AttentionParams& params, DType dtype, int padded_head_dim,
                            int num_sms, bool after_key_norms, cudaStream_t stream) {
  const auto launch = dtype == DType::kFloat16 ? LaunchFloat16 : LaunchBFloat16;
  return launch(params, padded_head_dim, num_sms, after_key_norms, stream);
}

}  // namespace flashbias::cuda::hopper
