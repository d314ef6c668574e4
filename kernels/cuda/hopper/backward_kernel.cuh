// The Hopper backward kernels and their launch. Instantiated once a dtype and head_dim.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_KERNEL_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_KERNEL_CUH_

#include <algorithm>
#include <atomic>

#include "kernels/cuda/hopper/backward_consumer.cuh"
#include "kernels/cuda/hopper/backward_producer.cuh"

namespace flashbias::cuda::hopper {

template <typename L>
__device__ void InitBackwardBarriers(uint32_t base) {
  // Lanes that have read or written shared memory arrive themselves; what only tensor cores read, a
  // warp's first lane releases.
  constexpr int kWriter = L::kDkDv ? 32 : 0;
  constexpr int kConsumerThreads = L::kConsumers * kWarpgroupThreads;
  for (int stage = 0; stage < L::kStages; ++stage) {
    MbarrierInit(L::StatsFull(base, stage), 1);
    MbarrierInit(L::TileFull(base, stage), 1 + kWriter);
    MbarrierInit(L::TileEmpty(base, stage), L::kDkDv ? kConsumerThreads : kConsumerThreads / 32);
  }
  for (int buffer = 0; buffer < L::kBuffers; ++buffer) {
    // The loads' expectation, and the description.
    MbarrierInit(L::ItemFull(base, buffer), 1 + 32);
    MbarrierInit(L::ItemEmpty(base, buffer), kConsumerThreads + kWriter);
  }
  MbarrierInitFence();
}

template <typename Element, int kHeadDim, BackwardPass kPass, bool kSlopeGradient>
__global__ void __launch_bounds__(BackwardLayout<kHeadDim, kPass>::kThreads, 1)
    BackwardKernel(const __grid_constant__ BackwardParams params) {
  using L = BackwardLayout<kHeadDim, kPass>;
  // Uniform over the warp, and the compiler knows it.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  if (threadIdx.x == 0) InitBackwardBarriers<L>(SharedAddress(SharedMemory()));
  __syncthreads();
  if (warpgroup == L::kConsumers) {
    ShrinkRegisters<L::kProducerRegisters>();
    const int warp = threadIdx.x % kWarpgroupThreads / 32;
    if (warp == 0) {
      BackwardProducer<Element, kHeadDim, kPass>(params).Run();
    } else if (L::kDkDv && warp == 1) {
      ShiftWriter<Element, kHeadDim>().Run();
    }
  } else {
    GrowRegisters<L::kConsumerRegisters>();
    BackwardConsumer<Element, kHeadDim, kPass, kSlopeGradient>(warpgroup).Run();
  }
}

// `overlaps`: blocks may start when those of the launch before have no more to do.
template <typename Element, int kHeadDim, BackwardPass kPass, bool kSlopeGradient>
cudaError_t LaunchPass(const BackwardParams& params, bool overlaps, int num_sms,
                       cudaStream_t stream) {
  using L = BackwardLayout<kHeadDim, kPass>;
  const int num_items = L::kDkDv ? params.num_kv_items : params.num_q_items;
  if (num_items == 0) return cudaSuccess;
  auto* const kernel = BackwardKernel<Element, kHeadDim, kPass, kSlopeGradient>;
  static std::atomic<uint64_t> configured{0};  // a bit a device
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((configured.load(std::memory_order_acquire) & bit) == 0) {
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    // The consumers would wait for ever for registers that the launch does not bring.
    if (attributes.numRegs != L::kLaunchRegisters) return cudaErrorInvalidKernelImage;
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kSharedBytes);
    if (error != cudaSuccess) return error;
    configured.fetch_or(bit, std::memory_order_release);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::min(num_items, num_sms));
  config.blockDim = dim3(L::kThreads);
  config.dynamicSmemBytes = L::kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

template <typename Element, int kHeadDim>
cudaError_t LaunchPasses(const BackwardParams& params, bool wants_dslopes, int num_sms,
                         cudaStream_t stream) {
  const cudaError_t error =
      LaunchPass<Element, kHeadDim, BackwardPass::kDkDv, false>(params, true, num_sms, stream);
  if (error != cudaSuccess) return error;
  // dq does not wait for the rows: that dk, dv has begun tells that they are there.
  const bool overlaps = params.num_kv_items > 0;
  constexpr BackwardPass kDq = BackwardPass::kDq;
  return wants_dslopes
             ? LaunchPass<Element, kHeadDim, kDq, true>(params, overlaps, num_sms, stream)
             : LaunchPass<Element, kHeadDim, kDq, false>(params, overlaps, num_sms, stream);
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_KERNEL_CUH_
