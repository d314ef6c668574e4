// Merges the parts of a row whose keys were split: a warp a row and head, in the order of the keys.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_MERGE_KERNEL_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_MERGE_KERNEL_CUH_

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/portable/partial_lse.cuh"
#include "kernels/cuda/portable/query_row.cuh"

namespace flashbias::cuda::portable {

inline constexpr int kMergeThreads = 128;

template <typename T, int kHeadDim>
__device__ void MergeRow(const AttentionParams& params, const SequenceParams& sequence,
                         int64_t out_row) {
  constexpr int kColumns = kHeadDim / 32;  // of a lane: lane, lane + 32, ..
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = sequence.partial_begin + out_row * sequence.num_splits;
  const bool low_rank = sequence.phi_q != nullptr;

  // Online, as in the kernel; logs of base 2, in double for what low-rank biases need.
  double max = -INFINITY;
  float sum = 0;
  float o[kColumns] = {};
#pragma unroll 4
  for (int split = 0; split < sequence.num_splits; ++split) {
    const float* partial = params.partial_o + (first + split) * kHeadDim;
    float part[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) part[i] = partial[lane + 32 * i];
    double lse = params.partial_lse[first + split];
    if (low_rank) lse += static_cast<double>(FromLastBits(part[0]));
    if (lse == -INFINITY) continue;
    const double old_max = max;
    if (lse > max) max = lse;
    const float rescale = exp2f(static_cast<float>(old_max - max));
    const float weight = exp2f(static_cast<float>(lse - max));
    sum = fmaf(sum, rescale, weight);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) o[i] = fmaf(o[i], rescale, weight * part[i]);
  }

  const bool empty = sum == 0;
  auto* to = static_cast<unsigned char*>(sequence.o) + out_row * sequence.head_dim * 2;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int column = lane + 32 * i;
    const uint32_t bits = empty ? 0 : PackPair<T>(o[i] / sum, 0);
    if (column < sequence.head_dim) StoreUnaligned16(to + 2 * column, bits);
  }
  if (lane != 0 || sequence.lse == nullptr) return;
  double reference = 0;
  if (sequence.slopes != nullptr && !empty) {
    const int row = static_cast<int>(out_row / sequence.num_q_heads);
    const int head = static_cast<int>(out_row % sequence.num_q_heads);
    reference =
        ReferenceBias(sequence, AdmittedKeys(sequence, row, row), row, sequence.slopes[head]);
  }
  const double log2_sum = max + static_cast<double>(log2f(sum));
  sequence.lse[out_row] = empty ? -INFINITY : static_cast<float>(kLn2 * log2_sum + reference);
}

// Blocks [n * blocks_per_sequence, (n + 1) * blocks_per_sequence) merge sequence n.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kMergeThreads)
    MergeKernel(const __grid_constant__ AttentionParams params, int blocks_per_sequence) {
  const int block = static_cast<int>(blockIdx.x);
  const SequenceParams& sequence = params.sequences[block / blocks_per_sequence];
  if (sequence.num_splits <= 1) return;
  constexpr int kWarps = kMergeThreads / 32;
  const int64_t rows = int64_t{sequence.q_len} * sequence.num_q_heads;
  const int64_t begin =
      int64_t{block % blocks_per_sequence} * kWarps + static_cast<int>(threadIdx.x) / 32;
  for (int64_t row = begin; row < rows; row += int64_t{blocks_per_sequence} * kWarps) {
    MergeRow<T, kHeadDim>(params, sequence, row);
  }
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_MERGE_KERNEL_CUH_
