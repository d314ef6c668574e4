// AttendRequest bytes, in slices -> their fields; tensors stay where they lie.
//
// Pure function, thread-safe.
#ifndef FLASHBIAS_SERVER_ATTEND_READER_H_
#define FLASHBIAS_SERVER_ATTEND_READER_H_

#include <grpcpp/support/slice.h>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/attend_fields.h"

namespace flashbias::server {

// What the generated class would read from the same bytes, as views of them. INVALID_ARGUMENT where
// they are no AttendRequest, or where a list is longer than any request may have it.
absl::StatusOr<AttendFields> ReadAttendRequest(absl::Span<const grpc::Slice> slices);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_ATTEND_READER_H_
