#include "kernels/cuda/hopper/hopper_backward.h"
#include "kernels/cuda/hopper/tensor_maps.h"

namespace flashbias::cuda::hopper {

absl::Status EncodeBackwardMaps(const BackwardSequence& sequence, DType dtype, int padded_head_dim,
                                BackwardTensorMaps* maps) {
  constexpr int kBoxRows = 64;
  const SequenceParams& s = sequence.forward;
  const auto queries = [&](const void* base) {
    return MappedTensor{base, s.q_len, s.num_q_heads, s.head_dim, s.q_head_stride};
  };
  const auto keys = [&](const void* base) {
    return MappedTensor{base, s.kv_len, s.num_kv_heads, s.head_dim, s.kv_head_stride};
  };
  absl::Status status = EncodeTensorMap(queries(s.q), dtype, padded_head_dim, kBoxRows, &maps->q);
  if (!status.ok()) return status;
  status = EncodeTensorMap(keys(s.k), dtype, padded_head_dim, kBoxRows, &maps->k);
  if (!status.ok()) return status;
  status = EncodeTensorMap(keys(s.v), dtype, padded_head_dim, kBoxRows, &maps->v);
  if (!status.ok()) return status;
  return EncodeTensorMap(queries(sequence.d_o), dtype, padded_head_dim, kBoxRows, &maps->d_o);
}

}  // namespace flashbias::cuda::hopper
