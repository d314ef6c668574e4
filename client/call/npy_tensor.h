// Between .npy arrays and the tensors of a call.
//
// Pure functions; thread-safe. Every error is one line that begins with the array's name.
#ifndef FLASHBIAS_CLIENT_CALL_NPY_TENSOR_H_
#define FLASHBIAS_CLIENT_CALL_NPY_TENSOR_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/attention_types.h"
#include "client/call/npy.h"
#include "kernels/dtype.h"

namespace flashbias::client {

// A tensor and its memory.
struct OwnedTensor {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape = {};
  std::string data = {};

  // Points into this.
  TensorView view() const { return {.dtype = dtype, .shape = shape, .data = data.data()}; }
};

// `wanted` absent: float16 and float32 arrays as they are, float64 and uint16 refused. Otherwise
// converted, rounded once to nearest even; uint16 holds raw bfloat16 bits and only becomes
// bfloat16. INVALID_ARGUMENT: also when a finite value would become infinite. `dtype_flag` is the
// flag that sets `wanted`, which messages advise to use ("--dtype"); null: there is none.
absl::StatusOr<OwnedTensor> ToTensor(const std::string& name, NpyArray array,
                                     std::optional<DType> wanted, const char* dtype_flag);

// numpy has no bfloat16: it is widened to float32, exactly.
NpyArray ToNpy(DType dtype, const std::vector<int64_t>& shape, const std::string& elements);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_CALL_NPY_TENSOR_H_
