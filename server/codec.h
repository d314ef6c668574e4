// The bytes of a request -> a problem with everything it points to; a solved problem -> the bytes
// of its response. A request is of one direction: AttendRequest, or backward AttendBackwardRequest.
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
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/attention_backend.h"
#include "kernels/attention_problem.h"
#include "kernels/host_memory.h"
#include "kernels/upload_ahead.h"
#include "server/attend_fields.h"
#include "server/attend_validation.h"
#include "server/pending_request.h"
#include "server/region_binding.h"
#include "server/region_registry.h"
#include "wire/chunk_assembler.h"
#include "wire/chunk_cutter.h"
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
// where the bytes are no request of the direction. `regions` null: the call may not use any.
absl::StatusOr<ParsedAttend> ParseAttendRequest(Direction direction, grpc::ByteBuffer* message,
                                                const AttendLimits& limits,
                                                const RegionRegistry* regions = nullptr);

// The same from fields that were read already; `slices` hold the message they came in.
absl::StatusOr<ParsedAttend> ParseAttendFields(AttendFields fields, std::vector<grpc::Slice> slices,
                                               const AttendLimits& limits,
                                               const RegionRegistry* regions = nullptr);

// Room for a request whose tensors are yet to be written.
struct ReservedAttend {
  DecodedAttend decoded;
  std::vector<wire::IncomingTensor> inputs;  // where they belong, in storage of `decoded`
  UploadAhead* upload = nullptr;             // of them, in that storage; null: there is none
};

using StartUpload = absl::FunctionRef<std::unique_ptr<UploadAhead>(const HostBlock&)>;

// Makes room for tensors and outputs in blocks of `allocator` and lets go of the message; what is
// in regions stays there. `keeps` lives as long as the storage. `start_upload` is given the inputs'
// block; what it returns lives until the answer is encoded. Errors as StageAttendRequest.
absl::StatusOr<ReservedAttend> ReserveAttendRequest(
    ParsedAttend parsed, HostAllocator& allocator, std::shared_ptr<void> keeps = nullptr,
    StartUpload start_upload = [](const HostBlock&) { return std::unique_ptr<UploadAhead>(); });

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

// An AttendResponse or AttendBackwardResponse. REQUIRES: `problem` and `storage` come from
// StageAttendRequest; the outputs are written.
grpc::ByteBuffer EncodeAttendResponse(const AttentionProblem& problem,
                                      std::unique_ptr<ProblemStorage> storage,
                                      const ResponseTiming& timing);

// An answer as the messages of a stream: its header, then the outputs in chunks that refer to the
// problem's storage and keep it alive. Thread-safety: one thread at a time.
class AttendResponseStream {
 public:
  // REQUIRES: as EncodeAttendResponse; chunk_bytes > 0.
  AttendResponseStream(const AttentionProblem& problem, std::unique_ptr<ProblemStorage> storage,
                       const ResponseTiming& timing, int64_t chunk_bytes);

  // The next message; nullopt: that was all.
  std::optional<grpc::ByteBuffer> Next();

 private:
  std::shared_ptr<ProblemStorage> storage_;
  std::optional<grpc::ByteBuffer> header_;  // until it is sent
  wire::ChunkCutter cutter_;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_CODEC_H_
