#include "kernels/cuda/hopper/tensor_maps.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>

#include "absl/strings/str_cat.h"

namespace flashbias::cuda::hopper {
namespace {

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);

// The driver is not linked: the same binary runs where there is none. Null: not there.
EncodeFunction FindEncode() {
  static std::atomic<EncodeFunction> found{nullptr};
  if (const EncodeFunction known = found.load(std::memory_order_relaxed)) return known;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  const auto encode = reinterpret_cast<EncodeFunction>(function);
  found.store(encode, std::memory_order_relaxed);
  return encode;
}

}  // namespace

absl::Status EncodeTensorMap(const MappedTensor& tensor, DType dtype, int padded_head_dim,
                             int box_rows, CUtensorMap* map) {
  if (tensor.rows == 0) return absl::OkStatus();
  const EncodeFunction encode_tiled = FindEncode();
  if (encode_tiled == nullptr) {
    return absl::InternalError("the CUDA driver offers no cuTensorMapEncodeTiled");
  }
  const auto [base, rows, heads, head_dim, head_stride] = tensor;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(heads),
                               static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(head_stride) * 2,
                                 static_cast<cuuint64_t>(head_stride) * 2 * heads};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(std::min(64, padded_head_dim)), 1,
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t element_strides[3] = {1, 1, 1};
  const CUresult result = encode_tiled(
      map,
      dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      3, const_cast<void*>(base), sizes, strides, box, element_strides,
      CU_TENSOR_MAP_INTERLEAVE_NONE,
      padded_head_dim == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cuTensorMapEncodeTiled failed with ",
                                          static_cast<int>(result), " for ", rows, " rows, ", heads,
                                          " heads of ", head_stride, " elements"));
}

absl::Status EncodeTensorMaps(const SequenceParams& s, DType dtype, int padded_head_dim,
                              SequenceTensorMaps* maps) {
  const auto keys = [&](const void* base) {
    return MappedTensor{base, s.kv_len, s.num_kv_heads, s.head_dim, s.kv_head_stride};
  };
  absl::Status status =
      EncodeTensorMap({s.q, s.q_len, s.num_q_heads, s.head_dim, s.q_head_stride}, dtype,
                      padded_head_dim, QueryBoxRows(padded_head_dim), &maps->q);
  if (!status.ok()) return status;
  status = EncodeTensorMap(keys(s.k), dtype, padded_head_dim, kKeyTileKeys, &maps->k);
  if (!status.ok()) return status;
  return EncodeTensorMap(keys(s.v), dtype, padded_head_dim, kKeyTileKeys, &maps->v);
}

}  // namespace flashbias::cuda::hopper
