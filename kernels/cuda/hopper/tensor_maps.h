// Encodes the tensor maps through which the Hopper kernels' TMA loads go.
//
// Host code; needs the driver (not the toolkit) of a machine with a GPU. Thread-safe.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_TENSOR_MAPS_H_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_TENSOR_MAPS_H_

#include "absl/status/status.h"
#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/dtype.h"

namespace flashbias::cuda::hopper {

// A tensor of one sequence in device memory, heads and rows one after the other.
struct MappedTensor {
  const void* base;  // 16-byte aligned
  int rows;
  int heads;
  int head_dim;
  int head_stride;  // elements, a multiple of 8
};

// The map of boxes of `box_rows` rows by min(64, padded_head_dim) columns of one head, in shared
// memory with the 64-byte (padded_head_dim 32) or 128-byte swizzle; rows past the end read as zero.
// Stays as it is, and unused, where there are no rows. INTERNAL: no driver, or it refused.
absl::Status EncodeTensorMap(const MappedTensor& tensor, DType dtype, int padded_head_dim,
                             int box_rows, CUtensorMap* map);

// Maps of a bound sequence's q, k and v, in boxes of QueryBoxRows() query rows or kKeyTileKeys key
// rows.
absl::Status EncodeTensorMaps(const SequenceParams& sequence, DType dtype, int padded_head_dim,
                              SequenceTensorMaps* maps);

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_TENSOR_MAPS_H_
