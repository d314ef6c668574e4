// The Hopper kernel and its launch. Instantiated once a dtype and head_dim.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_ATTENTION_KERNEL_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_ATTENTION_KERNEL_CUH_

#include <algorithm>
#include <atomic>

#include "kernels/cuda/hopper/consumer.cuh"
#include "kernels/cuda/hopper/producer.cuh"

namespace flashbias::cuda::hopper {

// The constant operands: ones beside the values, and the key side of the ramp, whose first three
// columns count the tile's keys, upwards and (for keys on the right) downwards. By the consumers.
template <typename Element, int kHeadDim>
__device__ void FillConstants(char* shared) {
  using L = Layout<kHeadDim>;
  constexpr int kThreads = L::kConsumers * kWarpgroupThreads;
  const uint32_t one = PackPair<Element>(1.0f, 1.0f);
  auto* const ones = reinterpret_cast<uint4*>(shared + L::kOnesOffset);
  for (int i = threadIdx.x; i < L::kOnesBytes / 16; i += kThreads) {
    ones[i] = make_uint4(one, one, one, one);
  }
  auto* const ramp = reinterpret_cast<uint4*>(shared + L::kRampOffset);
  for (int i = threadIdx.x; i < L::kRampBytes / 16; i += kThreads) {
    const int key = i / 2;
    // The 32-byte swizzle: rows 4 to 7 of every 8 have their halves exchanged.
    const bool holds_keys = i % 2 == key / 4 % 2;
    const auto position = static_cast<float>(key);
    constexpr uint32_t kSigns = 0x80008000u;
    const uint32_t pair = holds_keys ? PackPair<Element>(position, position) : 0;
    const uint32_t single = holds_keys ? PackPair<Element>(position, 0) : 0;
    ramp[i] = make_uint4(pair, single, 0, 0);
    ramp[i + L::kRampBytes / 16] = make_uint4(pair ^ kSigns, single ^ kSigns, 0, 0);
  }
  FenceAsyncProxy();
}

template <int kHeadDim>
__device__ void InitBarriers(uint32_t base) {
  using L = Layout<kHeadDim>;
  for (int stage = 0; stage < L::kStages; ++stage) {
    MbarrierInit(L::KeysFull(base, stage), 1);
    MbarrierInit(L::KeysEmpty(base, stage), 4 * L::kConsumers);
    if (L::kScoresAhead) {
      MbarrierInit(L::ValuesFull(base, stage), 1);
      MbarrierInit(L::ValuesEmpty(base, stage), 4 * L::kConsumers);
    }
  }
  for (int buffer = 0; buffer < L::kBuffers; ++buffer) {
    MbarrierInit(L::ItemFull(base, buffer), 1);
    MbarrierInit(L::QueriesFull(base, buffer), 1);
    MbarrierInit(L::ItemEmpty(base, buffer), L::kConsumers * kWarpgroupThreads);
  }
  MbarrierInitFence();
}

template <typename Element, int kHeadDim>
__global__ void __launch_bounds__(Layout<kHeadDim>::kThreads, 1)
    AttentionKernel(const __grid_constant__ KernelParams params) {
  using L = Layout<kHeadDim>;
  // Uniform over the warp, and the compiler knows it.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  if (warpgroup == L::kConsumers) {
    ShrinkRegisters<L::kProducerRegisters>();
    const int warp = threadIdx.x % kWarpgroupThreads / 32;
    if (warp == 0) {
      // The first loads wait for nothing but their barriers.
      if (threadIdx.x % 32 == 0) InitBarriers<kHeadDim>(SharedAddress(SharedMemory()));
      const int map = threadIdx.x % 32 - 1;
      if (map >= 0 && map < 3 && params.num_first_items > 0) {
        PrefetchTensorMap(&params.tensor_maps.q + map);
      }
      __syncwarp();
      NamedBarrierArrive(kStartBarrier, L::kStartThreads);
      if (threadIdx.x % 32 == 0) Producer<kHeadDim>(params).Run();
    }
  } else {
    GrowRegisters<L::kConsumerRegisters>();
    FillConstants<Element, kHeadDim>(SharedMemory());
    NamedBarrierSync(kStartBarrier, L::kStartThreads);
    Consumer<Element, kHeadDim>(params, warpgroup).Run();
  }
}

// Copies what the first blocks need into the argument, where the plan is simple enough.
template <int kHeadDim>
KernelParams MakeKernelParams(const HostPlan& plan, int num_blocks) {
  KernelParams params{};
  params.plan = plan.params;
  constexpr int kMaxHalf = 0xffff;
  if (plan.params.num_sequences != 1) return params;
  const SequenceParams& sequence = plan.sequences[0];
  if (sequence.num_q_heads > kMaxSlopes || sequence.q_len / QueryTileRows(kHeadDim) > kMaxHalf) {
    return params;
  }
  params.sequence = sequence;
  params.tensor_maps = plan.tensor_maps[0];
  params.num_first_items = std::min({num_blocks, plan.params.num_items, kMaxFirstItems});
  for (int n = 0; n < params.num_first_items; ++n) {
    const WorkItem& item = plan.items[n];
    params.first_items[n] = static_cast<uint32_t>(item.q_begin / QueryTileRows(kHeadDim)) << 16 |
                            static_cast<uint32_t>(item.head);
  }
  if (plan.slopes != nullptr) {
    std::copy_n(plan.slopes, sequence.num_q_heads, params.slopes);
  }
  return params;
}

// Once a device: what the kernel needs beyond its defaults.
template <typename Element, int kHeadDim>
cudaError_t Configure() {
  using L = Layout<kHeadDim>;
  static std::atomic<uint64_t> configured{0};  // a bit a device
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((configured.load(std::memory_order_acquire) & bit) != 0) return cudaSuccess;
  auto* const kernel = AttentionKernel<Element, kHeadDim>;
  cudaFuncAttributes attributes;
  error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  // The consumers would wait for ever for registers that the launch does not bring.
  if (attributes.numRegs != L::kLaunchRegisters) return cudaErrorInvalidKernelImage;
  error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kSharedBytes);
  if (error != cudaSuccess) return error;
  configured.fetch_or(bit, std::memory_order_release);
  return cudaSuccess;
}

template <typename Element, int kHeadDim>
cudaError_t Launch(const HostPlan& plan, int num_sms, cudaStream_t stream) {
  using L = Layout<kHeadDim>;
  const cudaError_t error = Configure<Element, kHeadDim>();
  if (error != cudaSuccess) return error;
  const int num_blocks = std::min(plan.params.num_items, num_sms);
  const KernelParams params = MakeKernelParams<kHeadDim>(plan, num_blocks);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(num_blocks);
  config.blockDim = dim3(L::kThreads);
  config.dynamicSmemBytes = L::kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = plan.after_key_norms ? 1 : 0;
  return cudaLaunchKernelEx(&config, AttentionKernel<Element, kHeadDim>, params);
}

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_ATTENTION_KERNEL_CUH_
