#include "kernels/cuda/portable/launch_backward.cuh"

namespace flashbias::cuda::portable {

template cudaError_t LaunchBackwardOf<__nv_bfloat16>(const BackwardParams&, int, QueryKind,
                                                     cudaStream_t);

}  // namespace flashbias::cuda::portable
