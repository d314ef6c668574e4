#include "kernels/cuda/portable/launch_backward.cuh"

namespace flashbias::cuda::portable {

template cudaError_t LaunchBackwardOf<__half>(const BackwardParams&, int, QueryKind, cudaStream_t);

cudaError_t LaunchBackward(const BackwardParams& params, DType dtype, int padded_head_dim,
                           bool low_rank, bool dslopes, int /*num_sms*/, cudaStream_t stream) {
  const QueryKind kind = low_rank  ? QueryKind::kLowRank
                         : dslopes ? QueryKind::kSlopeGradient
                                   : QueryKind::kPlain;
  switch (dtype) {
    case DType::kFloat16:
      return LaunchBackwardOf<__half>(params, padded_head_dim, kind, stream);
    case DType::kBFloat16:
      return LaunchBackwardOf<__nv_bfloat16>(params, padded_head_dim, kind, stream);
    case DType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace flashbias::cuda::portable
