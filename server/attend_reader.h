// AttendRequest bytes, in slices -> their fields; tensors stay where they lie.
//
// Pure function, thread-safe.
#ifndef FLASHBIAS_SERVER_ATTEND_READER_H_
#define FLASHBIAS_SERVER_ATTEND_READER_H_

#include <grpcpp/support/slice.h>

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/attend_fields.h"
#include "wire/chunk.h"

namespace flashbias::server {

// What the generated class would read from the same bytes, as views of them. INVALID_ARGUMENT where
// they are no AttendRequest, or where a list is longer than any request may have it.
absl::StatusOr<AttendFields> ReadAttendRequest(absl::Span<const grpc::Slice> slices);

// One message of a stream's caller: at most one of header and chunk is set.
struct StreamMessage {
  std::optional<AttendFields> header;  // with data_follows
  std::optional<wire::Chunk> chunk;
  int64_t max_chunk_bytes = 0;
};

// As ReadAttendRequest, of an AttendStreamRequest.
absl::StatusOr<StreamMessage> ReadAttendStreamRequest(absl::Span<const grpc::Slice> slices);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_ATTEND_READER_H_
