// A Tensor of the contract as it lies in a message: the small fields by value, the elements as a
// range of the message's bytes.
//
// Plain values; free of gRPC and protobuf.
#ifndef FLASHBIAS_WIRE_TENSOR_FIELD_H_
#define FLASHBIAS_WIRE_TENSOR_FIELD_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flashbias::wire {

// `size` bytes of a message, from `begin` on.
struct ByteRange {
  size_t begin = 0;
  size_t size = 0;
};

struct TensorField {
  bool present = false;
  int dtype = 0;                    // a number of contract.h, or one that nobody knows
  std::vector<int64_t> shape = {};  // unchecked
  ByteRange data = {};
};

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_TENSOR_FIELD_H_
