// What a plan of the CUDA kernels may choose.
//
// Thread-safety: plain values.
#ifndef FLASHBIAS_KERNELS_CUDA_PLAN_OPTIONS_H_
#define FLASHBIAS_KERNELS_CUDA_PLAN_OPTIONS_H_

#include <cstdint>

namespace flashbias::cuda {

// Queries or keys of one sequence.
inline constexpr int64_t kMaxSequenceRows = int64_t{1} << 30;

enum class KernelFamily : uint8_t {
  kHopper,    // sm_90a: wgmma, TMA (kernels/cuda/hopper)
  kPortable,  // sm_80 and up: mma.sync (kernels/cuda/portable)
};

struct PlanOptions {
  // kHopper is a wish: what that kernel cannot do is planned for the portable one.
  enum class Family : uint8_t { kFastest, kHopper, kPortable };
  // kWhenItPays: only where the pass over the keys costs less than what skipping is expected to
  // save. Both keep eps's promise.
  enum class Skipping : uint8_t { kWhenItPays, kWhereverPossible };

  Family family = Family::kFastest;
  Skipping skipping = Skipping::kWhenItPays;
};

// 32, 64 or 128: the head_dim that kernels are compiled for.
constexpr int PaddedHeadDim(int head_dim) {
  return head_dim <= 32 ? 32 : (head_dim <= 64 ? 64 : 128);
}

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_PLAN_OPTIONS_H_
