#include <algorithm>

#include "kernels/cuda/portable/merge_kernel.cuh"
#include "kernels/cuda/portable/portable_attention.h"

namespace flashbias::cuda::portable {
namespace {

// Which sequences have splits is known on the device only; blocks of the others return at once.
constexpr int kMaxBlocks = 8192;
constexpr int kMaxBlocksPerSequence = 256;

template <typename T>
cudaError_t LaunchMergeOf(const AttentionParams& params, int padded_head_dim, cudaStream_t stream) {
  const int per_sequence = std::clamp(kMaxBlocks / params.num_sequences, 1, kMaxBlocksPerSequence);
  const int blocks = params.num_sequences * per_sequence;
  switch (padded_head_dim) {
    case 32:
      MergeKernel<T, 32><<<blocks, kMergeThreads, 0, stream>>>(params, per_sequence);
      break;
    case 64:
      MergeKernel<T, 64><<<blocks, kMergeThreads, 0, stream>>>(params, per_sequence);
      break;
    case 128:
      MergeKernel<T, 128><<<blocks, kMergeThreads, 0, stream>>>(params, per_sequence);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchMergeSplits(const AttentionParams& params, DType dtype, int padded_head_dim,
                              cudaStream_t stream) {
  if (params.num_sequences == 0) return cudaSuccess;
  switch (dtype) {
    case DType::kFloat16:
      return LaunchMergeOf<__half>(params, padded_head_dim, stream);
    case DType::kBFloat16:
      return LaunchMergeOf<__nv_bfloat16>(params, padded_head_dim, stream);
    case DType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace flashbias::cuda::portable
