// Tiles of 64 rows in shared memory: their layout, and their asynchronous copies.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_TILE_COPY_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_TILE_COPY_CUH_

#include <cstdint>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/portable/mma.cuh"

namespace flashbias::cuda::portable {

inline constexpr int kThreads = 128;
inline constexpr int kTileRows = 64;

// [64][kHeadDim] 16-bit elements in chunks of 16 bytes, swizzled so that the eight rows of an
// ldmatrix lie in different banks.
template <int kHeadDim>
struct TileLayout {
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kBytes = kTileRows * kRowBytes;

  static __device__ uint32_t Offset(int row, int chunk) {
    // Two rows of 64 bytes share the banks of one of 128.
    const int swizzle = kChunks >= 8 ? row & 7 : (row >> 1) & 3;
    return static_cast<uint32_t>((row * kChunks + (chunk ^ swizzle)) * 16);
  }

  // From the address of chunk 0 or 1 of a row to that `chunks` (even) later; cheaper than to keep
  // all of them. Tiles are aligned to 256 bytes.
  static __device__ uint32_t Later(uint32_t address, int chunks) { return address ^ (chunks * 16); }
};

// Copies key tiles of one key/value head. A thread copies one chunk of every kRowStep-th row.
template <int kHeadDim>
class KeyTileCopier {
 public:
  __device__ KeyTileCopier(const SequenceParams& sequence, int kv_head)
      : kv_len_(Chunk() * 8 < sequence.head_dim ? sequence.kv_len : 0),
        row_bytes_(int64_t{sequence.num_kv_heads} * sequence.kv_head_stride * 2) {
    const int64_t begin = (int64_t{kv_head} * sequence.kv_head_stride + Chunk() * 8) * 2;
    k_ = static_cast<const char*>(sequence.k) + begin;
    v_ = static_cast<const char*>(sequence.v) + begin;
  }

  // Rows past the sequence and columns past head_dim become zero.
  __device__ void Copy(int tile, uint32_t to_k, uint32_t to_v) const {
    int key = tile * kTileRows + Row();
    const char* k = k_ + key * row_bytes_;
    const char* v = v_ + key * row_bytes_;
    const uint32_t to = TileLayout<kHeadDim>::Offset(Row(), Chunk());
#pragma unroll
    for (int i = 0; i < kTileRows; i += kRowStep) {
      CopyAsync16(to_k + to + i * TileLayout<kHeadDim>::kRowBytes, k, key < kv_len_);
      CopyAsync16(to_v + to + i * TileLayout<kHeadDim>::kRowBytes, v, key < kv_len_);
      key += kRowStep;
      k += kRowStep * row_bytes_;
      v += kRowStep * row_bytes_;
    }
  }

 private:
  static constexpr int kChunks = TileLayout<kHeadDim>::kChunks;
  static constexpr int kRowStep = kThreads / kChunks;
  static_assert(kRowStep % 8 == 0, "the swizzle is the same for all rows of a thread");
  static __device__ int Chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  static __device__ int Row() { return static_cast<int>(threadIdx.x) / kChunks; }

  const char* k_;
  const char* v_;
  const int kv_len_;  // 0 where the thread's chunk lies past head_dim
  const int64_t row_bytes_;
};

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_TILE_COPY_CUH_
