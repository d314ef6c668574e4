// The tensors of a checked request: what every step from its bytes to its answer goes through.
//
// Thread-safety: plain values and free functions on their arguments.
#ifndef FLASHBIAS_SERVER_ATTEND_TENSORS_H_
#define FLASHBIAS_SERVER_ATTEND_TENSORS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "kernels/attention_problem.h"
#include "wire/tensor_field.h"

namespace flashbias::server {

// What both have.
struct AttendTensor {
  TensorSet tensor = 0;   // which one, a single bit
  const char* name = "";  // its field's, for errors; a literal
  int stream_number = 0;  // of its chunks (wire/contract.h)
  DType dtype = DType::kFloat32;
  int64_t bytes = 0;  // of its elements
};

struct InputTensor : AttendTensor {
  // Where its elements are: in the message, or where place.region_id is set in a region.
  wire::ByteRange data;
  wire::RegionPlace place;
};

struct OutputTensor : AttendTensor {
  int response_number = 0;  // its field's in the response
  absl::InlinedVector<int64_t, 3> shape;
  const char* place_name = "";             // of the field that says where it shall be; a literal
  std::optional<wire::RegionPlace> place;  // absent: in the response
};

// In the order in which they lie in host memory, in responses and in streams.
struct AttendTensors {
  std::vector<InputTensor> inputs;
  std::vector<OutputTensor> outputs;

  // Sums that ValidateAttend has made sure of.
  int64_t bytes() const;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_ATTEND_TENSORS_H_
