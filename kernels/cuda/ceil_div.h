// Division that rounds up, as counts of tiles and blocks need it. Host code.
#ifndef FLASHBIAS_KERNELS_CUDA_CEIL_DIV_H_
#define FLASHBIAS_KERNELS_CUDA_CEIL_DIV_H_

namespace flashbias::cuda {

// REQUIRES: a >= 0, b > 0.
template <typename T>
constexpr T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_CEIL_DIV_H_
