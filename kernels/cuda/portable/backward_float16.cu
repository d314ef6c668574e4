#include "kernels/cuda/portable/launch_backward.cuh"

namespace flashbias::cuda::portable {

template cudaError_t LaunchBackwardOf<__half>(const BackwardParams&, int, bool, cudaStream_t);

cudaError_t LaunchBackward(const BackwardParams& params, DType dtype, int padded_head_dim,
                           bool low_rank, int /*num_sms*/, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat16:
      return LaunchBackwardOf<__half>(params, padded_head_dim, low_rank, stream);
    case DType::kBFloat16:
      return LaunchBackwardOf<__nv_bfloat16>(params, padded_head_dim, low_rank, stream);
    case DType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace flashbias::cuda::portable
