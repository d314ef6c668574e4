// The one copy of a tensor: from the slices in which it arrived to where it is needed.
#ifndef FLASHBIAS_WIRE_GATHER_H_
#define FLASHBIAS_WIRE_GATHER_H_

#include <grpcpp/support/slice.h>

#include <string>

#include "absl/types/span.h"
#include "wire/copy_pool.h"
#include "wire/tensor_field.h"

namespace flashbias::wire {

struct GatherItem {
  ByteRange from = {};  // of the message
  void* to = nullptr;   // from.size bytes
};

// REQUIRES: the ranges lie within the message that `slices` hold; nothing overlaps. `pool` null:
// the caller copies alone.
void Gather(absl::Span<const grpc::Slice> slices, absl::Span<const GatherItem> items,
            CopyPool* pool);

// Appends a range to a string, without filling it with zeroes first. REQUIRES: as Gather.
void AppendTo(absl::Span<const grpc::Slice> slices, ByteRange from, std::string* to);

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_GATHER_H_
