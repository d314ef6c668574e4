// Softmax in base 2, where four lanes of a warp hold a row of a tensor instruction's result.
#ifndef FLASHBIAS_KERNELS_CUDA_SOFTMAX_MATH_CUH_
#define FLASHBIAS_KERNELS_CUDA_SOFTMAX_MATH_CUH_

namespace flashbias::cuda {

inline constexpr double kExactLog2E = 1.442695040888963407;
inline constexpr float kLog2E = static_cast<float>(kExactLog2E);
inline constexpr double kLn2 = 0.693147180559945309;

// 2^x to 2^-22; 0 below 2^-126.
__device__ __forceinline__ float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Over the lanes 4 g .. 4 g + 3, all of which get the result and must ask together.
__device__ __forceinline__ float QuadMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}

__device__ __forceinline__ float QuadSum(float value) {
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_SOFTMAX_MATH_CUH_
