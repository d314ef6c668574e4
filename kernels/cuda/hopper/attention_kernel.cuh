// The Hopper kernel and its launch. Instantiated once a dtype and head_dim.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_ATTENTION_KERNEL_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_ATTENTION_KERNEL_CUH_

#include "kernels/cuda/hopper/consumer.cuh"
#include "kernels/cuda/hopper/producer.cuh"

namespace flashbias::cuda::hopper {

// The constant operands: ones beside the values, and the key side of the ramp, whose first three
// columns count the tile's keys.
template <typename Element, int kHeadDim>
__device__ void FillConstants(char* shared) {
  using L = Layout<kHeadDim>;
  const Element one = static_cast<Element>(1.0f);
  auto* const ones = reinterpret_cast<Element*>(shared + L::kOnesOffset);
  for (int i = threadIdx.x; i < L::kOnesBytes / 2; i += L::kThreads) ones[i] = one;
  auto* const ramp = reinterpret_cast<Element*>(shared + L::kRampOffset);
  for (int i = threadIdx.x; i < L::kRampBytes / 2; i += L::kThreads) {
    const int key = i / 16;
    // The 32-byte swizzle: rows 4 to 7 of every 8 have their halves exchanged.
    const int column = i % 16 ^ (key / 4 % 2 * 8);
    ramp[i] = static_cast<Element>(column < 3 ? static_cast<float>(key) : 0.0f);
  }
  FenceAsyncProxy();
}

template <typename Element, int kHeadDim>
__global__ void __launch_bounds__(Layout<kHeadDim>::kThreads, 1)
    AttentionKernel(const __grid_constant__ AttentionParams params) {
  using L = Layout<kHeadDim>;
  extern __shared__ __align__(1024) char shared[];
  const uint32_t base = SharedAddress(shared);
  FillConstants<Element, kHeadDim>(shared);
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = L::kConsumers * 4;
    for (int stage = 0; stage < L::kStages; ++stage) {
      MbarrierInit(L::TileFull(base, stage), 1);
      MbarrierInit(L::TileEmpty(base, stage), kConsumerWarps);
    }
    for (int buffer = 0; buffer < L::kQueryBuffers; ++buffer) {
      MbarrierInit(L::QueryFull(base, buffer), 1);
      MbarrierInit(L::QueryEmpty(base, buffer), kConsumerWarps);
    }
    MbarrierInitFence();
  }
  __syncthreads();
  // Uniform over the warp, and the compiler knows it.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  if (warpgroup == L::kConsumers) {
    ShrinkRegisters<L::kProducerRegisters>();
    if (threadIdx.x == L::kConsumers * kWarpgroupThreads) Producer<kHeadDim>(params, shared).Run();
  } else {
    GrowRegisters<L::kConsumerRegisters>();
    Consumer<Element, kHeadDim>(params, shared, warpgroup).Run();
  }
}

template <typename Element, int kHeadDim>
cudaError_t Launch(const AttentionParams& params, int num_sms, bool after_key_norms,
                   cudaStream_t stream) {
  using L = Layout<kHeadDim>;
  auto* const kernel = AttentionKernel<Element, kHeadDim>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kSharedBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(min(params.num_items, num_sms));
  config.blockDim = dim3(L::kThreads);
  config.dynamicSmemBytes = L::kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = after_key_norms ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_ATTENTION_KERNEL_CUH_
