// The partial lse of a low-rank bias.
//
// Splits know no common reference without reading all factors, so theirs are absolute, in two
// floats. The low one travels in the last bits of the first 32 columns of the row's partial_o,
// where it changes a value by 2^-24 at most.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_PARTIAL_LSE_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_PARTIAL_LSE_CUH_

#include <cstdint>

namespace flashbias::cuda::portable {

__device__ inline float WithLastBit(float value, uint32_t bit) {
  return __uint_as_float((__float_as_uint(value) & ~1u) | (bit & 1u));
}

// The float that a warp's lanes hold one bit each of; lane n has column n.
__device__ inline float FromLastBits(float value) {
  return __uint_as_float(__ballot_sync(0xffffffffu, (__float_as_uint(value) & 1u) != 0));
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_PARTIAL_LSE_CUH_
