#include "kernels/cuda/key_norms.h"

#include <cfloat>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/element.cuh"

namespace flashbias::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRowsInFlight = 8;  // 16-byte loads that a thread has under way
constexpr int kScanTiles = 8;     // loads of 32 tiles that a scanning warp has under way

// More than the rounding of a sum of 128 squares.
constexpr float kRoundUp = 1.0f + 2e-5f;

template <typename T>
__device__ float SumOfSquares(const uint4& elements, const uint4& mask) {
  const uint32_t words[4] = {elements.x & mask.x, elements.y & mask.y, elements.z & mask.z,
                             elements.w & mask.w};
  float even = 0;
  float odd = 0;
#pragma unroll
  for (const uint32_t word : words) {
    const float2 pair = UnpackPair<T>(word);
    even = fmaf(pair.x, pair.x, even);
    odd = fmaf(pair.y, pair.y, odd);
  }
  return even + odd;
}

// Bits of the elements of the 16 bytes from `column` on that lie below head_dim.
__device__ uint4 ColumnMask(int column, int head_dim) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = (column + 2 * i < head_dim ? 0x0000ffffu : 0) |
               (column + 2 * i + 1 < head_dim ? 0xffff0000u : 0);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ KeyNormJob JobOfBlock(const KeyNormParams& params, int block) {
  if (params.num_jobs == 1) return params.only;
  int first = 0;
  int last = params.num_jobs - 1;
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    if (params.jobs[middle].first_block <= block) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return params.jobs[first];
}

// The largest |k|^2 of `heads` heads over one tile of keys, through `maxima` to both tables.
//
// A group of lanes reads a key of a head, 16 bytes a lane. Groups are laid out as [parts][heads],
// so that those of one part read heads that lie side by side; parts share the tile's keys.
template <typename T>
__device__ void WriteTileMaxima(const KeyNormJob& job, int tile, int first_head, int heads,
                                float* maxima) {
  const int chunks = (job.head_dim + 7) / 8;
  const int lanes = 32 / job.slice_heads;
  const int num_groups = kThreads / lanes;
  const int parts = num_groups / heads;
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int chunk = static_cast<int>(threadIdx.x) % lanes;
  const int part = group / heads;
  const bool active = part < parts && chunk < chunks;

  const uint4 mask = ColumnMask(8 * chunk, job.head_dim);
  const int64_t key_stride = int64_t{job.num_kv_heads} * job.head_stride;  // elements
  const int begin = tile * kNormTileKeys;
  const int count = min(kNormTileKeys, job.kv_len - begin);
  const T* k = static_cast<const T*>(job.k) + begin * key_stride +
               int64_t{first_head + group % heads} * job.head_stride + 8 * chunk;
  float max = 0;
  for (int first = 0; first < count; first += parts * kRowsInFlight) {
    uint4 elements[kRowsInFlight];
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      const int key = first + part + i * parts;
      const bool load = active && key < count;
      elements[i] = load ? __ldg(reinterpret_cast<const uint4*>(k + key * key_stride))
                         : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      float sum = SumOfSquares<T>(elements[i], mask);
      for (int step = lanes / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
      }
      max = fmaxf(max, sum <= FLT_MAX ? sum : INFINITY);  // NaN counts as infinity
    }
  }
  if (chunk == 0) maxima[group] = max;
  __syncthreads();
  const int writer = static_cast<int>(threadIdx.x);
  if (writer >= heads) return;
  float largest = 0;
  for (int p = 0; p < parts; ++p) largest = fmaxf(largest, maxima[p * heads + writer]);
  const float norm = sqrtf(fmaf(largest, kRoundUp, kVanishedSquares));
  float* to = job.key_norms + int64_t{first_head + writer} * job.norm_tiles + tile;
  to[0] = norm;
  to[int64_t{job.num_kv_heads} * job.norm_tiles] = norm;
}

// Makes running maxima of a row of a table, from tile `first` on; a warp. Reads past the L1 cache:
// other blocks wrote there.
__device__ void Scan(float* norms, int num_tiles, int first, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float running = 0;
  for (int begin = 0; begin < num_tiles; begin += 32 * kScanTiles) {
    float maxima[kScanTiles];
#pragma unroll
    for (int i = 0; i < kScanTiles; ++i) {
      const int n = begin + 32 * i + lane;
      maxima[i] = n < num_tiles ? __ldcg(norms + first + n * step) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kScanTiles; ++i) {
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const float earlier = __shfl_up_sync(0xffffffffu, maxima[i], distance);
        if (lane >= distance) maxima[i] = fmaxf(maxima[i], earlier);
      }
      running = fmaxf(running, maxima[i]);
      const int n = begin + 32 * i + lane;
      if (n < num_tiles) norms[first + n * step] = running;
      running = __shfl_sync(0xffffffffu, running, 31);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    KeyNormsKernel(const __grid_constant__ KeyNormParams params) {
  __shared__ float maxima[kThreads];
  __shared__ bool is_last;
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  const KeyNormJob job = JobOfBlock(params, static_cast<int>(blockIdx.x));
  const int block = static_cast<int>(blockIdx.x) - job.first_block;
  const int num_slices = (job.num_kv_heads + job.slice_heads - 1) / job.slice_heads;
  const int slice = block % num_slices;
  const int first_head = slice * job.slice_heads;
  const int heads = min(job.slice_heads, job.num_kv_heads - first_head);
  WriteTileMaxima<T>(job, block / num_slices, first_head, heads, maxima);

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(&job.done_blocks[slice], 1u) == static_cast<unsigned>(job.norm_tiles) - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x == 0) job.done_blocks[slice] = 0;
  // Of both tables.
  for (int row = static_cast<int>(threadIdx.x) / 32; row < 2 * heads; row += kWarps) {
    const bool backwards = row >= heads;
    const int head = first_head + (backwards ? row - heads : row);
    float* norms =
        job.key_norms + (int64_t{backwards ? job.num_kv_heads : 0} + head) * job.norm_tiles;
    Scan(norms, job.norm_tiles, backwards ? job.norm_tiles - 1 : 0, backwards ? -1 : 1);
  }
}

}  // namespace

cudaError_t LaunchKeyNorms(const KeyNormParams& params, DType dtype, cudaStream_t stream) {
  if (params.num_blocks == 0) return cudaSuccess;
  if (dtype == DType::kFloat16) {
    KeyNormsKernel<__half><<<params.num_blocks, kThreads, 0, stream>>>(params);
  } else {
    KeyNormsKernel<__nv_bfloat16><<<params.num_blocks, kThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

}  // namespace flashbias::cuda
