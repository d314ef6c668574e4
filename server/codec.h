// AttendRequest bytes -> a problem with everything it points to; a solved problem -> AttendResponse
// bytes.
//
// The tensors of a response are not copied: the returned buffer refers to the problem's storage and
// keeps it alive. Thread-safety: free functions on their arguments.
#ifndef FLASHBIAS_SERVER_CODEC_H_
#define FLASHBIAS_SERVER_CODEC_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/attention_backend.h"
#include "kernels/attention_problem.h"
#include "server/attend_validation.h"
#include "server/pending_request.h"

namespace flashbias::server {

struct DecodedAttend {
  AttentionProblem problem;
  std::unique_ptr<ProblemStorage> storage;  // owns all that `problem` points to
  int64_t bytes = 0;                        // that the storage holds
};

// Consumes `message`: its memory is released as soon as it has been read.
// Errors as ValidateAttend; INVALID_ARGUMENT also where the bytes are no AttendRequest.
absl::StatusOr<DecodedAttend> DecodeAttendRequest(grpc::ByteBuffer* message,
                                                  const AttendLimits& limits);

// Timing of the contract.
struct ResponseTiming {
  absl::Duration receive = {};
  absl::Duration queue = {};
  absl::Duration compute = {};
  absl::Duration send = {};
  int64_t batch_requests = 0;
  ProblemStats stats = {};
};

// REQUIRES: `problem` and `storage` come from DecodeAttendRequest; o and lse are written.
grpc::ByteBuffer EncodeAttendResponse(const AttentionProblem& problem,
                                      std::unique_ptr<ProblemStorage> storage,
                                      const ResponseTiming& timing);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_CODEC_H_
