// The warp that brings an item's key norms to where its consumers decide how far to walk.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_NORM_READER_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_NORM_READER_CUH_

#include "kernels/cuda/hopper/layout.cuh"

namespace flashbias::cuda::hopper {

template <int kHeadDim>
class NormReader {
 public:
  using L = Layout<kHeadDim>;

  // REQUIRES: one warp.
  __device__ void Run() {
    for (;;) {
      MbarrierWait(L::ItemFull(base_, item_.slot()), item_.parity());
      const ItemInfo& info = *L::Info(shared_, item_.slot());
      if (info.sequence < 0) return;
      if (info.key_norms != nullptr) {
        // They are the previous launch's.
        WaitForPreviousLaunch();
        float* const norms = L::Norms(shared_, item_.slot());
        const int entry_keys = info.tiles_per_norm * kKeyTileKeys;
        WriteRunningMaxima(info, 0, info.first_tile / entry_keys, 1, norms);
        if (info.causal == 0) {
          WriteRunningMaxima(info, (info.kv_len - 1) / entry_keys, info.first_tile / entry_keys, -1,
                             norms + kNormEntries);
        }
      }
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        MbarrierArrive(L::NormsFull(base_, item_.slot()));
        MbarrierArrive(L::ItemEmpty(base_, item_.slot()));
      }
      item_.Advance();
    }
  }

 private:
  // to[t] = the largest |k| of the entries from `first` to t, for t from `first` to `last`.
  __device__ static void WriteRunningMaxima(const ItemInfo& info, int first, int last, int step,
                                            float* to) {
    constexpr int kBatch = 4;  // loads under way
    const int lane = threadIdx.x % 32;
    const int count = (last - first) * step + 1;
    float running = 0;
    for (int begin = 0; begin < count; begin += 32 * kBatch) {
      float maxima[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int n = begin + 32 * i + lane;
        maxima[i] = n < count ? EntryMaximum(info, first + n * step) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
          const float earlier = __shfl_up_sync(~0u, maxima[i], distance);
          if (lane >= distance) maxima[i] = fmaxf(maxima[i], earlier);
        }
        running = fmaxf(running, maxima[i]);
        const int n = begin + 32 * i + lane;
        if (n < count) to[first + n * step] = running;
        running = __shfl_sync(~0u, running, 31);
      }
    }
  }

  __device__ static float EntryMaximum(const ItemInfo& info, int entry) {
    const int norms = info.tiles_per_norm * (kKeyTileKeys / kNormTileKeys);
    const int end = min((entry + 1) * norms, info.norm_tiles);
    float maximum = 0;
    for (int t = entry * norms; t < end; ++t) maximum = fmaxf(maximum, __ldcg(&info.key_norms[t]));
    return maximum;
  }

  char* const shared_ = SharedMemory();
  const uint32_t base_ = SharedAddress(SharedMemory());
  RingPosition<L::kBuffers> item_;
};

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_NORM_READER_CUH_
