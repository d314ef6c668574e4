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
#include "client/answer.h"
#include "client/attention_types.h"
#include "client/region_placement.h"
#include "client/tensor_loans.h"
#include "flashbias/v1/attention.pb.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "grpcpp/support/status.h"
#include "wire/chunk_cutter.h"
#include "wire/message_reader.h"

namespace flashbias::client {

// What differs between the methods with tensors.
struct MethodNames {
  const char* path;         // of the call that is whole
  const char* stream_path;  // of the one in chunks
  const char* response;     // the message's name
  const char* stream_response;
};
MethodNames NamesOf(const AttendRequest& request);
MethodNames NamesOf(const AttendBackwardRequest& request);

// The message's bytes; tensors are lent by `loans`, small ones copied, those in regions named, as
// the places that `answer` has. REQUIRES: SummarizeRequest(request) is OK.
grpc::ByteBuffer EncodeRequest(const AttendRequest& request, const RegionPlacement& placement,
                               const Answer& answer, TensorLoans& loans);
grpc::ByteBuffer EncodeRequest(const AttendBackwardRequest& request,
                               const RegionPlacement& placement, const Answer& answer,
                               TensorLoans& loans);

// Consumes `message`, of the type `name`. The tensors go where `answer` says; those in regions are
// there already. INTERNAL: the message is no answer to the request; nothing was written to buffers
// outside of regions.
absl::Status DecodeAnswer(const char* name, grpc::ByteBuffer* message, Answer* answer);

// The first message of a stream, with all but the tensors' elements; those of large slopes are lent
// by `loans`. REQUIRES: as EncodeRequest.
grpc::ByteBuffer EncodeStreamHeader(const AttendRequest& request, int64_t max_chunk_bytes,
                                    TensorLoans& loans);
grpc::ByteBuffer EncodeStreamHeader(const AttendBackwardRequest& request, int64_t max_chunk_bytes,
                                    TensorLoans& loans);

// The tensors of the chunks that follow.
std::vector<wire::OutgoingTensor> OutgoingTensors(const AttendRequest& request);
std::vector<wire::OutgoingTensor> OutgoingTensors(const AttendBackwardRequest& request);

// The steps of DecodeAnswer, which a streamed answer takes too.
//
// The slices of `message`, which is cleared.
absl::StatusOr<std::vector<grpc::Slice>> TakeSlices(grpc::ByteBuffer* message);
// Reads the fields of a response, merged into `fields`, which has one of each tensor of `expected`.
// Outcome: reader->ok().
void ReadAnswer(const Answer& expected, wire::MessageReader* reader, AnswerFields* fields);
// INTERNAL: that the message is no `type`, and why.
absl::Status NoMessage(absl::Span<const grpc::Slice> slices, const char* type,
                       const wire::MessageReader& reader);

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& message);

// The same code and message.
absl::Status ToStatus(const grpc::Status& status);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_WIRE_CODEC_H_
