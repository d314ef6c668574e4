// The bytes of a request, in slices -> its fields; tensors stay where they lie.
//
// A request is of one direction: AttendRequest, or backward AttendBackwardRequest.
//
// Pure function, thread-safe.
#ifndef FLASHBIAS_SERVER_ATTEND_READER_H_
#define FLASHBIAS_SERVER_ATTEND_READER_H_

#include <grpcpp/support/slice.h>

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "server/attend_fields.h"
#include "wire/chunk.h"

namespace flashbias::server {

// What the generated class would read from the same bytes, as views of them. INVALID_ARGUMENT where
// they are no request, or where a list is longer than any request may have it.
absl::StatusOr<AttendFields> ReadAttendRequest(Direction direction,
                                               absl::Span<const grpc::Slice> slices);

// One message of a stream's caller: at most one of header and chunk is set.
struct StreamMessage {
  std::optional<AttendFields> header;  // with data_follows
  std::optional<wire::Chunk> chunk;
  int64_t max_chunk_bytes = 0;
};

// As ReadAttendRequest, of an AttendStreamRequest or AttendBackwardStreamRequest.
absl::StatusOr<StreamMessage> ReadAttendStreamRequest(Direction direction,
                                                      absl::Span<const grpc::Slice> slices);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_ATTEND_READER_H_
