// Between the public types and the messages of the wire: the only place that knows both.
//
// Free functions on their arguments.
#ifndef FLASHBIAS_CLIENT_WIRE_CODEC_H_
#define FLASHBIAS_CLIENT_WIRE_CODEC_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/attention_types.h"
#include "client/region_placement.h"
#include "client/request_validation.h"
#include "client/tensor_loans.h"
#include "flashbias/v1/attention.pb.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "grpcpp/support/status.h"
#include "wire/message_reader.h"
#include "wire/tensor_field.h"

namespace flashbias::client {

// The message's bytes; tensors are lent by `loans`, small ones copied, those in regions named.
// REQUIRES: SummarizeRequest(request) is OK.
grpc::ByteBuffer EncodeRequest(const AttendRequest& request, const RegionPlacement& placement,
                               TensorLoans& loans);

// Consumes `message`. The tensors go to `buffers` where those are given, else into the result;
// those in regions are there already. INTERNAL: the message is no answer to the request; nothing
// was written to `buffers` outside of regions. REQUIRES: CheckBuffers(request, buffers) is OK.
absl::StatusOr<AttendResult> DecodeResult(const RequestSummary& request,
                                          const ResultBuffers& buffers,
                                          const RegionPlacement& placement,
                                          grpc::ByteBuffer* message);

// The first message of a stream: an AttendStreamRequest with all but the tensors' elements; those
// of large slopes are lent by `loans`. REQUIRES: as EncodeRequest.
grpc::ByteBuffer EncodeStreamHeader(const AttendRequest& request, int64_t max_chunk_bytes,
                                    TensorLoans& loans);

// An AttendResponse; its tensors' elements are ranges of the message it came in.
struct ResponseFields {
  Timing timing = {};
  wire::TensorField o = {};
  wire::TensorField lse = {};
};

// The steps of DecodeResult, which a streamed answer takes too.
//
// The slices of `message`, which is cleared.
absl::StatusOr<std::vector<grpc::Slice>> TakeSlices(grpc::ByteBuffer* message);
// Reads the fields of an AttendResponse, merged into `response`. Outcome: reader->ok().
void ReadResponse(wire::MessageReader* reader, ResponseFields* response);
// INTERNAL: that the message is no `type`, and why.
absl::Status NoMessage(absl::Span<const grpc::Slice> slices, const char* type,
                       const wire::MessageReader& reader);
// INTERNAL: dtypes, shapes or sizes are not those that the request asks for.
absl::Status CheckResponse(const RequestSummary& request, const ResponseFields& response);

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& message);

// The same code and message.
absl::Status ToStatus(const grpc::Status& status);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_WIRE_CODEC_H_
