#include "kernels/cuda/portable/launch_attention.cuh"

namespace flashbias::cuda::portable {

template cudaError_t LaunchAttentionOf<__nv_bfloat16>(const AttentionParams&, int, bool, int,
                                                      cudaStream_t);

}  // namespace flashbias::cuda::portable
