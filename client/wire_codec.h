// Between the public types and the messages of the wire: the only place that knows both.
//
// Pure functions; thread-safe. The messages own copies of what the views point at.
#ifndef FLASHBIAS_CLIENT_WIRE_CODEC_H_
#define FLASHBIAS_CLIENT_WIRE_CODEC_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/attention_types.h"
#include "client/request_validation.h"
#include "flashbias/v1/attention.pb.h"
#include "grpcpp/support/status.h"

namespace flashbias::client {

// REQUIRES: SummarizeRequest(request) is OK.
void EncodeRequest(const AttendRequest& request, v1::AttendRequest* message);

// Takes the tensors out of `message`. INTERNAL: it is not an answer to `request`.
absl::StatusOr<AttendResult> DecodeResult(const RequestSummary& request,
                                          v1::AttendResponse&& message);

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& message);

// The same code and message.
absl::Status ToStatus(const grpc::Status& status);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_WIRE_CODEC_H_
