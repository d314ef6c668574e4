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

// Two tensors whose tiles go together: keys and values, or queries and d_o.
struct TilePair {
  const void* first;  // [rows, heads, head_dim], heads head_stride apart, 16-byte aligned
  const void* second;
  int rows;
  int heads;
  int head_stride;
  int head_dim;
};

__device__ inline TilePair KeysAndValues(const SequenceParams& sequence) {
  return {
      sequence.k,       sequence.v, sequence.kv_len, sequence.num_kv_heads, sequence.kv_head_stride,
      sequence.head_dim};
}

// Copies tiles of one head. A thread copies one chunk of every kRowStep-th row.
template <int kHeadDim>
class TilePairCopier {
 public:
  __device__ TilePairCopier(const TilePair& pair, int head)
      : rows_(Chunk() * 8 < pair.head_dim ? pair.rows : 0),
        row_bytes_(int64_t{pair.heads} * pair.head_stride * 2) {
    const int64_t begin = (int64_t{head} * pair.head_stride + Chunk() * 8) * 2;
    first_ = static_cast<const char*>(pair.first) + begin;
    second_ = static_cast<const char*>(pair.second) + begin;
  }

  // Rows past the tensors and columns past head_dim become zero.
  __device__ void Copy(int tile, uint32_t to_first, uint32_t to_second) const {
    int row = tile * kTileRows + Row();
    const char* first = first_ + row * row_bytes_;
    const char* second = second_ + row * row_bytes_;
    const uint32_t to = TileLayout<kHeadDim>::Offset(Row(), Chunk());
#pragma unroll
    for (int i = 0; i < kTileRows; i += kRowStep) {
      CopyAsync16(to_first + to + i * TileLayout<kHeadDim>::kRowBytes, first, row < rows_);
      CopyAsync16(to_second + to + i * TileLayout<kHeadDim>::kRowBytes, second, row < rows_);
      row += kRowStep;
      first += kRowStep * row_bytes_;
      second += kRowStep * row_bytes_;
    }
  }

 private:
  static constexpr int kChunks = TileLayout<kHeadDim>::kChunks;
  static constexpr int kRowStep = kThreads / kChunks;
  static_assert(kRowStep % 8 == 0, "the swizzle is the same for all rows of a thread");
  static __device__ int Chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  static __device__ int Row() { return static_cast<int>(threadIdx.x) / kChunks; }

  const char* first_;
  const char* second_;
  int rows_;  // 0 where the thread's chunk lies past head_dim
  int64_t row_bytes_;
};

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_TILE_COPY_CUH_
