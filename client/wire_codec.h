// Between the public types and the messages of the wire: the only place that knows both.
//
// Free functions on their arguments.
#ifndef FLASHBIAS_CLIENT_WIRE_CODEC_H_
#define FLASHBIAS_CLIENT_WIRE_CODEC_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/attention_types.h"
#include "client/region_placement.h"
#include "client/request_validation.h"
#include "client/tensor_loans.h"
#include "flashbias/v1/attention.pb.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"

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

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& message);

// The same code and message.
absl::Status ToStatus(const grpc::Status& status);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_WIRE_CODEC_H_
