// Powers of two that keep what the backward pass rounds to 16 bits in the middle of fp16's range.
//
// dS is as small as the loss scale and a row's many keys make it. With
//
//   |dS[i, j]| <= 2 max|d_o| max(|v|, |o|)
//
// it is multiplied by a power of two that takes this bound to about 2^14, and the gradients are
// divided by it at the end: exact, and the gradients' relative error depends neither on the scale
// of d_o nor on that of v. Probabilities are multiplied by a constant. bf16 has the range of fp32.
#ifndef FLASHBIAS_KERNELS_CUDA_GRADIENT_SCALE_CUH_
#define FLASHBIAS_KERNELS_CUDA_GRADIENT_SCALE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace flashbias::cuda {

// log2 of the factor of probabilities. They are at most 1 and rounding.
template <typename Element>
inline constexpr int kProbabilityScaleLog2 = std::is_same_v<Element, __half> ? 12 : 0;

// log2 of the factor of dS. `magnitudes` as in BackwardSequence; null: 0.
__device__ inline int GradientScaleLog2(const uint32_t* magnitudes, int kv_head) {
  if (magnitudes == nullptr) return 0;
  const float d_o = __uint_as_float(__ldcg(magnitudes + 2 * kv_head));
  const float v_or_o = __uint_as_float(__ldcg(magnitudes + 2 * kv_head + 1));
  // fp16's norms are between 2^-24 and 2^20, or zero, or infinite.
  const float bound = 2 * d_o * v_or_o;
  if (!(bound > 0) || !(bound < INFINITY)) return 0;
  const int exponent = static_cast<int>(__float_as_uint(bound) >> 23) - 127;  // of a normal number
  return 13 - exponent;
}

// What of the rounding of o in delta each unit of a row's probability carries: over all keys of a
// row dS adds up to zero but for that, and distances or factors would carry it into the gradient of
// the bias. A row's probabilities add up to `mass`, its dS to `excess`. Where lse counts keys that
// are not here, those of another shard, dS has no reason to add up to zero: 0.
template <typename Element>
__device__ inline float ExcessOfMass(float mass, float excess) {
  // lse may be that of weights rounded to 16 bits.
  constexpr float kWholeRow = std::is_same_v<Element, __half> ? 0x1p-10f : 0x1p-7f;
  return fabsf(mass - 1) < kWholeRow ? excess / mass : 0.0f;
}

// 2^exponent; REQUIRES: -126 <= exponent <= 127.
__device__ inline float PowerOfTwo(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_GRADIENT_SCALE_CUH_
