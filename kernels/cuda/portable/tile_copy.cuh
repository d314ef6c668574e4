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
  static constexpr int kBytes = kTileRows * kHeadDim * 2;

  static __device__ uint32_t Offset(int row, int chunk) {
    // Two rows of 64 bytes share the banks of one of 128.
    const int swizzle = kChunks >= 8 ? row & 7 : (row >> 1) & 3;
    return static_cast<uint32_t>((row * kChunks + (chunk ^ swizzle)) * 16);
  }
};

// Copies key tiles of one key/value head. A thread copies one chunk of every kRowStep-th row.
template <int kHeadDim>
class KeyTileCopier {
 public:
  __device__ KeyTileCopier(const SequenceParams& sequence, int kv_head)
      : kv_len_(sequence.kv_len),
        row_bytes_(int64_t{sequence.num_kv_heads} * sequence.kv_head_stride * 2),
        has_chunk_(Chunk() * 8 < sequence.head_dim) {
    const int64_t begin = (int64_t{kv_head} * sequence.kv_head_stride + Chunk() * 8) * 2;
    k_ = static_cast<const char*>(sequence.k) + (has_chunk_ ? begin : 0);
    v_ = static_cast<const char*>(sequence.v) + (has_chunk_ ? begin : 0);
  }

  // Rows past the sequence and columns past head_dim become zero.
  __device__ void Copy(int tile, uint32_t to_k, uint32_t to_v) const {
#pragma unroll
    for (int i = 0; i < kTileRows; i += kRowStep) {
      const int row = i + Row();
      const int key = tile * kTileRows + row;
      const bool valid = has_chunk_ && key < kv_len_;
      const int64_t offset = valid ? key * row_bytes_ : 0;
      const uint32_t to = TileLayout<kHeadDim>::Offset(row, Chunk());
      CopyAsync16(to_k + to, k_ + offset, valid);
      CopyAsync16(to_v + to, v_ + offset, valid);
    }
  }

 private:
  static constexpr int kChunks = TileLayout<kHeadDim>::kChunks;
  static constexpr int kRowStep = kThreads / kChunks;
  static __device__ int Chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  static __device__ int Row() { return static_cast<int>(threadIdx.x) / kChunks; }

  const char* k_;
  const char* v_;
  const int kv_len_;
  const int64_t row_bytes_;
  const bool has_chunk_;
};

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_TILE_COPY_CUH_
