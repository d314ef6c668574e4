// The bytes of a gRPC message, slice by slice, as protobuf's streams want them.
//
// Thread-safety: one thread at a time. Ownership: the slices must outlive the stream; nothing is
// copied.
#ifndef FLASHBIAS_WIRE_SLICE_STREAM_H_
#define FLASHBIAS_WIRE_SLICE_STREAM_H_

#include <google/protobuf/io/zero_copy_stream.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace flashbias::wire {

class SliceStream final : public google::protobuf::io::ZeroCopyInputStream {
 public:
  explicit SliceStream(absl::Span<const grpc::Slice> slices) : slices_(slices) {}

  bool Next(const void** data, int* size) override;
  void BackUp(int count) override;
  bool Skip(int count) override;
  int64_t ByteCount() const override { return position_; }

 private:
  const absl::Span<const grpc::Slice> slices_;
  size_t index_ = 0;      // the slice that holds the next byte
  size_t offset_ = 0;     // of that byte in it
  int64_t position_ = 0;  // bytes before it in the message
};

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_SLICE_STREAM_H_
