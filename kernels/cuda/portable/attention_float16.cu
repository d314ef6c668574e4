#include "kernels/cuda/portable/launch_attention.cuh"

namespace flashbias::cuda::portable {

template cudaError_t LaunchAttentionOf<__half>(const AttentionParams&, int, bool, int,
                                               cudaStream_t);

cudaError_t LaunchAttention(const AttentionParams& params, DType dtype, int padded_head_dim,
                            bool low_rank, int num_sms, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat16:
      return LaunchAttentionOf<__half>(params, padded_head_dim, low_rank, num_sms, stream);
    case DType::kBFloat16:
      return LaunchAttentionOf<__nv_bfloat16>(params, padded_head_dim, low_rank, num_sms, stream);
    case DType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace flashbias::cuda::portable
