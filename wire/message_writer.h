// Writes protobuf fields one after the other into a string: all of a message but its large bytes,
// which the caller sends from where they lie.
//
// Thread-safety: one thread at a time. Ownership: the string is the writer's until Take.
#ifndef FLASHBIAS_WIRE_MESSAGE_WRITER_H_
#define FLASHBIAS_WIRE_MESSAGE_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/types/span.h"
#include "kernels/dtype.h"
#include "wire/tensor_field.h"

namespace flashbias::wire {

class MessageWriter {
 public:
  // Fields without presence: left out where the value is the default, as the generated classes do.
  void Varint(int field, int64_t value);
  void Bool(int field, bool value) { Varint(field, value ? 1 : 0); }
  void Double(int field, double value);
  void Fixed64(int field, uint64_t value);
  void Packed(int field, absl::Span<const int64_t> values);
  void PackedZigzag(int field, absl::Span<const int64_t> values);
  // A field with presence: written always.
  void Float(int field, float value);

  // The tag and length of a message or bytes field whose `size` bytes follow.
  void LengthDelimited(int field, uint64_t size);
  // A Tensor field up to its elements, of which `data_bytes` follow (in the string or beside it).
  void TensorHeader(int field, DType dtype, absl::Span<const int64_t> shape, uint64_t data_bytes);
  // A Tensor field whose elements lie in a region.
  void TensorInRegion(int field, DType dtype, absl::Span<const int64_t> shape,
                      const RegionPlace& place);
  void Place(int field, const RegionPlace& place);
  void Bytes(const void* data, size_t size);

  size_t size() const { return bytes_.size(); }
  // What was written so far; the writer starts anew.
  std::string Take() { return std::exchange(bytes_, std::string()); }

 private:
  void Tag(int field, uint32_t wire_type);
  void RawVarint(uint64_t value);

  std::string bytes_;
};

// Bytes that TensorHeader writes and the elements take together.
uint64_t TensorFieldSize(int field, DType dtype, absl::Span<const int64_t> shape,
                         uint64_t data_bytes);
// Bytes that TensorInRegion writes.
uint64_t TensorInRegionSize(int field, DType dtype, absl::Span<const int64_t> shape,
                            const RegionPlace& place);

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_MESSAGE_WRITER_H_
