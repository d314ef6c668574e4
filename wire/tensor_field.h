// A Tensor of the contract as it lies in a message: the small fields by value, the elements as a
// range of the message's bytes or as a place in memory that both ends share.
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

// Byte `offset` of a region; 0 is no region's id.
struct RegionPlace {
  uint64_t region_id = 0;
  uint64_t offset = 0;
};

struct TensorField {
  bool present = false;
  int dtype = 0;                    // a number of contract.h, or one that nobody knows
  std::vector<int64_t> shape = {};  // unchecked
  ByteRange data = {};
  RegionPlace place = {};  // unchecked
};

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_TENSOR_FIELD_H_
