// The argument of the Hopper kernel.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_KERNEL_PARAMS_H_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_KERNEL_PARAMS_H_

#include "kernels/cuda/hopper/hopper_attention.h"

namespace flashbias::cuda::hopper {

inline constexpr int kMaxFirstItems = 160;  // one for each multiprocessor of any Hopper GPU
inline constexpr int kMaxSlopes = 128;

// A plan of one sequence travels in the argument itself, its first items too, so that no round trip
// to memory stands between the launch and the first tile.
struct KernelParams {
  AttentionParams plan;
  int num_first_items;  // 0: everything is read from the plan
  SequenceParams sequence;
  SequenceTensorMaps tensor_maps;
  uint32_t first_items[kMaxFirstItems];  // query tile << 16 | head
  float slopes[kMaxSlopes];
};
static_assert(sizeof(KernelParams) <= 4096, "what every launch path takes");

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_KERNEL_PARAMS_H_
