// Walks the fields of a protobuf message that lies in slices, without a message class: small fields
// are read, large ones become ranges of the message.
//
//   MessageReader reader(slices);
//   while (reader.Next()) {
//     switch (reader.field()) {
//       case 3:
//         reader.ReadVarint(&mask);
//         break;
//       case 13:
//         reader.ReadMessage([&] { ... the same loop over its fields ... });
//         break;
//       default:
//         reader.Skip();
//     }
//   }
//   if (!reader.ok()) ...
//
// It accepts exactly what the generated classes accept: a known field of another wire type is an
// unknown field, unknown fields and groups are skipped, groups and messages nest 100 deep, repeated
// numbers come packed or one by one. The first malformed byte ends every loop; what was read until
// then is worthless.
//
// Thread-safety: one thread at a time. Ownership: the slices must outlive the reader. A message has
// at most 2^31 - 17 bytes.
#ifndef FLASHBIAS_WIRE_MESSAGE_READER_H_
#define FLASHBIAS_WIRE_MESSAGE_READER_H_

#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/support/slice.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "wire/slice_stream.h"
#include "wire/tensor_field.h"

namespace flashbias::wire {

class MessageReader {
 public:
  explicit MessageReader(absl::Span<const grpc::Slice> slices);
  MessageReader(const MessageReader&) = delete;
  MessageReader& operator=(const MessageReader&) = delete;

  // Steps to the next field of the message being read; false at its end and once the bytes are
  // malformed. After each true, exactly one of the methods below must be called.
  bool Next();
  int field() const { return static_cast<int>(tag_ >> 3); }

  // Each reads the field's value and returns true. Where the field came with another wire type it
  // is skipped as an unknown one; then, and where it is malformed, `*value` stays as it is.
  bool ReadVarint(int64_t* value);
  bool ReadEnum(int* value);  // the low 32 bits, as protobuf has it
  bool ReadBool(bool* value);
  bool ReadFloat(float* value);
  bool ReadDouble(double* value);
  bool ReadFixed64(uint64_t* value);
  bool ReadBytes(ByteRange* value);
  // Appends one number or all of a packed run; Zigzag is for sint64. More than `limit` values fail
  // the message, with `name` in the error: a byte of a message must not become eight of memory
  // without a bound.
  void ReadRepeated(const char* name, size_t limit, std::vector<int64_t>* values);
  void ReadRepeatedZigzag(const char* name, size_t limit, std::vector<int64_t>* values);
  // Calls `read_fields`, which loops over Next until false, with the reader confined to the field's
  // message; not where it is none.
  void ReadMessage(absl::FunctionRef<void()> read_fields);
  void Skip();

  // Whether all bytes so far were well formed.
  bool ok() const { return ok_; }
  // Where they were not: "malformed at byte 17", or which field has too many entries.
  const std::string& error() const { return error_; }

 private:
  bool Fail();         // false
  bool SkipUnknown();  // false
  bool ReadTag();
  bool ReadLength(int* length);
  bool SkipGroup(uint32_t field);
  bool SkipValue();
  bool AppendNumber(const char* name, size_t limit, bool zigzag, std::vector<int64_t>* values);
  void ReadNumbers(const char* name, size_t limit, bool zigzag, std::vector<int64_t>* values);

  SliceStream stream_;
  google::protobuf::io::CodedInputStream coded_;
  uint32_t tag_ = 0;
  bool ok_ = true;
  std::string error_;
};

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_MESSAGE_READER_H_
