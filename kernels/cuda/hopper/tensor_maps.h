// Encodes the tensor maps through which the Hopper kernel's TMA loads go.
//
// Host code; needs the driver (not the toolkit) of a machine with a GPU. Thread-safe.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_TENSOR_MAPS_H_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_TENSOR_MAPS_H_

#include "absl/status/status.h"
#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/dtype.h"

namespace flashbias::cuda::hopper {

// Maps of a bound sequence's q, k and v; those without rows stay as they are, and unused. Boxes are
// QueryBoxRows() query rows or kKeyTileKeys key rows by min(64, padded_head_dim) columns of one
// head, in shared memory with the 64-byte (padded_head_dim 32) or 128-byte swizzle. INTERNAL: no
// driver, or it refused.
absl::Status EncodeTensorMaps(const SequenceParams& sequence, DType dtype, int padded_head_dim,
                              SequenceTensorMaps* maps);

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_TENSOR_MAPS_H_
