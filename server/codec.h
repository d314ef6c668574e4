// AttendRequest bytes -> a problem with everything it points to; a solved problem -> AttendResponse
// bytes.
//
// A request takes two steps, so that nothing is allocated for one that is refused: Parse reads and
// checks it where it lies, Stage makes the one copy of its tensors. The tensors of a response are
// not copied: the returned buffer refers to the problem's storage and keeps it alive. Tensors in
// regions are not copied at all; the storage keeps their regions.
//
// Thread-safety: free functions on their arguments.
#ifndef FLASHBIAS_SERVER_CODEC_H_
#define FLASHBIAS_SERVER_CODEC_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/attention_backend.h"
#include "kernels/attention_problem.h"
#include "kernels/host_memory.h"
#include "server/attend_fields.h"
#include "server/attend_validation.h"
#include "server/pending_request.h"
#include "server/region_binding.h"
#include "server/region_registry.h"
#include "wire/copy_pool.h"

namespace flashbias::server {

// A request that is known to be good; its tensors lie in the message's slices or in regions.
struct ParsedAttend {
  std::vector<grpc::Slice> slices;
  AttendFields fields;
  ValidatedAttend valid;
  std::vector<float> slopes;  // empty where there are none
  RegionBinding regions;
};

struct DecodedAttend {
  AttentionProblem problem;
  std::unique_ptr<ProblemStorage> storage;  // owns all that `problem` points to
  int64_t bytes = 0;                        // that the storage holds, ranges of regions included
};

// Consumes `message`. Errors as ValidateAttend, BindRegions and CheckSlopes; INVALID_ARGUMENT also
// where the bytes are no AttendRequest. `regions` null: the call may not use any.
absl::StatusOr<ParsedAttend> ParseAttendRequest(grpc::ByteBuffer* message,
                                                const AttendLimits& limits,
                                                const RegionRegistry* regions = nullptr);

// Copies the message's tensors into a block of `allocator`, lets go of the message and makes room
// for the outputs; what is in regions stays there. `copy_pool` null: the caller copies alone.
// Errors are the allocator's: RESOURCE_EXHAUSTED where asking again may help.
absl::StatusOr<DecodedAttend> StageAttendRequest(ParsedAttend parsed, HostAllocator& allocator,
                                                 wire::CopyPool* copy_pool);

// Timing of the contract.
struct ResponseTiming {
  absl::Duration receive = {};
  absl::Duration queue = {};
  absl::Duration compute = {};
  absl::Duration send = {};
  int64_t batch_requests = 0;
  ProblemStats stats = {};
};

// REQUIRES: `problem` and `storage` come from StageAttendRequest; o and lse are written.
grpc::ByteBuffer EncodeAttendResponse(const AttentionProblem& problem,
                                      std::unique_ptr<ProblemStorage> storage,
                                      const ResponseTiming& timing);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_CODEC_H_
