// Reads one Tensor or RegionPlace of the contract.
#ifndef FLASHBIAS_WIRE_TENSOR_READER_H_
#define FLASHBIAS_WIRE_TENSOR_READER_H_

#include "wire/message_reader.h"
#include "wire/tensor_field.h"

namespace flashbias::wire {

// Extents that are read of a shape; more fail the message. The contract knows at most three.
inline constexpr size_t kMaxExtents = 32;

// The field at which `reader` stands, merged into `tensor` as protobuf merges a message that comes
// twice. `name` is for errors. Outcome: reader->ok().
void ReadTensor(const char* name, MessageReader* reader, TensorField* tensor);

// The same for a RegionPlace; false: the field was none.
bool ReadPlace(MessageReader* reader, RegionPlace* place);

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_TENSOR_READER_H_
