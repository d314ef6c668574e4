// 16-bit elements: conversions, and loads and stores that need no alignment.
#ifndef FLASHBIAS_KERNELS_CUDA_ELEMENT_CUH_
#define FLASHBIAS_KERNELS_CUDA_ELEMENT_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace flashbias::cuda {

// Squares of bf16 values may vanish in fp32, each by less than 2^-149: what 128 of them may miss,
// for sums of squares that must not be too small.
inline constexpr float kVanishedSquares = 0x1p-142f;

// Two elements in one register, the first in the low half.
template <typename T>
__device__ inline uint32_t PackPair(float first, float second) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(first, second);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const uint32_t&>(pair);
  }
}

template <typename T>
__device__ inline float2 UnpackPair(uint32_t pair) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
  } else {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  }
}

__device__ inline bool IsAligned(const void* pointer, int bytes) {
  return (reinterpret_cast<uintptr_t>(pointer) & (bytes - 1)) == 0;
}

__device__ inline uint32_t LoadUnaligned16(const unsigned char* at) {
  if (IsAligned(at, 2)) return *reinterpret_cast<const uint16_t*>(at);
  return at[0] | at[1] << 8;
}

__device__ inline uint32_t LoadUnaligned32(const unsigned char* at) {
  if (IsAligned(at, 4)) return *reinterpret_cast<const uint32_t*>(at);
  return LoadUnaligned16(at) | LoadUnaligned16(at + 2) << 16;
}

__device__ inline void StoreUnaligned16(unsigned char* at, uint32_t value) {
  if (IsAligned(at, 2)) {
    *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(value);
  } else {
    at[0] = static_cast<unsigned char>(value);
    at[1] = static_cast<unsigned char>(value >> 8);
  }
}

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_ELEMENT_CUH_
