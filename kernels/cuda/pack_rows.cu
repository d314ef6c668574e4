#include "kernels/cuda/pack_rows.h"

#include "kernels/cuda/element.cuh"

namespace flashbias::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;
constexpr int kChunkElements = 8;  // 16 bytes

// Elements [0, count) at `from`, one by one; the rest is zero.
__device__ uint4 LoadElements(const unsigned char* from, int count) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < kChunkElements; i += 2) {
    const uint32_t low = i < count ? LoadUnaligned16(from + 2 * i) : 0;
    const uint32_t high = i + 1 < count ? LoadUnaligned16(from + 2 * i + 2) : 0;
    words[i / 2] = low | high << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// 16 bytes at any address, by aligned words; touches up to 3 bytes on both sides of them.
__device__ uint4 LoadWords(const unsigned char* from) {
  const auto misalignment = static_cast<unsigned>(reinterpret_cast<uintptr_t>(from) & 3);
  const auto* words = reinterpret_cast<const uint32_t*>(from - misalignment);
  const unsigned shift = 8 * misalignment;
  const uint32_t w0 = words[0], w1 = words[1], w2 = words[2], w3 = words[3];
  const uint32_t w4 = misalignment != 0 ? words[4] : 0;
  return make_uint4(__funnelshift_r(w0, w1, shift), __funnelshift_r(w1, w2, shift),
                    __funnelshift_r(w2, w3, shift), __funnelshift_r(w3, w4, shift));
}

__global__ void __launch_bounds__(kThreads)
    PackRowsKernel(const __grid_constant__ PackParams params) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int j = 0; j < params.num_jobs; ++j) {
    const PackJob job = params.jobs[j];
    const int chunks_per_vector = job.padded_dim / kChunkElements;
    const int64_t num_chunks = job.num_vectors * chunks_per_vector;
    const auto* from = static_cast<const unsigned char*>(job.from);
    auto* to = static_cast<uint4*>(job.to);
    for (int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x; n < num_chunks; n += stride) {
      const int64_t vector = n / chunks_per_vector;
      const int column = static_cast<int>(n - vector * chunks_per_vector) * kChunkElements;
      const int count = min(job.head_dim - column, kChunkElements);
      const unsigned char* at = from + 2 * (vector * job.head_dim + column);
      // The tensor's ends are read without touching their neighbours.
      const bool whole = count == kChunkElements && n > 0 && n < num_chunks - 2;
      to[n] = whole ? LoadWords(at) : LoadElements(at, count);
    }
  }
}

}  // namespace

cudaError_t LaunchPackRows(const PackParams& params, int num_sms, cudaStream_t stream) {
  if (params.num_jobs == 0) return cudaSuccess;
  PackRowsKernel<<<kBlocksPerSm * num_sms, kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace flashbias::cuda
