#include "server/attend_reader.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "server/attend_validation.h"
#include "wire/contract.h"
#include "wire/message_reader.h"
#include "wire/tensor_reader.h"

namespace flashbias::server {
namespace {

using wire::AlibiNumber;
using wire::BackwardRequestNumber;
using wire::LowRankNumber;
using wire::MessageReader;
using wire::RequestNumber;
using wire::StreamNumber;

// One more than is legal, so that validation says how many came.
constexpr size_t kMaxEntries = kMaxSequences + 1;

void ReadAlibi(MessageReader* reader, AttendFields* fields) {
  reader->ReadMessage([&] {
    // Of a oneof only the member that came last counts.
    fields->phi_q = {};
    fields->phi_k = {};
    fields->bias = WireBias::kAlibi;
    while (reader->Next()) {
      if (reader->field() == AlibiNumber::kSlopes) {
        wire::ReadTensor("alibi.slopes.shape", reader, &fields->slopes);
      } else {
        reader->Skip();
      }
    }
  });
}

void ReadLowRank(MessageReader* reader, AttendFields* fields) {
  reader->ReadMessage([&] {
    fields->slopes = {};
    fields->bias = WireBias::kLowRank;
    while (reader->Next()) {
      switch (reader->field()) {
        case LowRankNumber::kPhiQ:
          wire::ReadTensor("low_rank.phi_q.shape", reader, &fields->phi_q);
          break;
        case LowRankNumber::kPhiK:
          wire::ReadTensor("low_rank.phi_k.shape", reader, &fields->phi_k);
          break;
        default:
          reader->Skip();
      }
    }
  });
}

void ReadOptionalFloat(MessageReader* reader, std::optional<float>* value) {
  float read = 0;
  if (reader->ReadFloat(&read)) *value = read;
}

// Present once its message is, though that may be empty; as ReadTensor.
void ReadOptionalPlace(MessageReader* reader, std::optional<wire::RegionPlace>* place) {
  wire::RegionPlace read = place->value_or(wire::RegionPlace());
  if (wire::ReadPlace(reader, &read)) *place = read;
}

void ReadField(MessageReader* reader, AttendFields* fields) {
  switch (reader->field()) {
    case RequestNumber::kQLens:
      return reader->ReadRepeated("q_lens", kMaxEntries, &fields->q_lens);
    case RequestNumber::kKvLens:
      return reader->ReadRepeated("kv_lens", kMaxEntries, &fields->kv_lens);
    case RequestNumber::kMask:
      reader->ReadEnum(&fields->mask);
      return;
    case RequestNumber::kLeftWindow:
      reader->ReadVarint(&fields->left_window);
      return;
    case RequestNumber::kQueryStart:
      return reader->ReadRepeatedZigzag("query_start", kMaxEntries, &fields->query_start);
    case RequestNumber::kKeyStart:
      return reader->ReadRepeatedZigzag("key_start", kMaxEntries, &fields->key_start);
    case RequestNumber::kSoftmaxScale:
      return ReadOptionalFloat(reader, &fields->softmax_scale);
    case RequestNumber::kEps:
      return ReadOptionalFloat(reader, &fields->eps);
    case RequestNumber::kWantLse:
      reader->ReadBool(&fields->want_lse);
      return;
    case RequestNumber::kAlibi:
      return ReadAlibi(reader, fields);
    case RequestNumber::kLowRank:
      return ReadLowRank(reader, fields);
    case RequestNumber::kQ:
      return wire::ReadTensor("q.shape", reader, &fields->q);
    case RequestNumber::kK:
      return wire::ReadTensor("k.shape", reader, &fields->k);
    case RequestNumber::kV:
      return wire::ReadTensor("v.shape", reader, &fields->v);
    case RequestNumber::kOPlace:
      return ReadOptionalPlace(reader, &fields->o_place);
    case RequestNumber::kLsePlace:
      return ReadOptionalPlace(reader, &fields->lse_place);
    default:
      return reader->Skip();
  }
}

// A field of an AttendBackwardRequest.
void ReadBackwardField(MessageReader* reader, AttendFields* fields) {
  BackwardFields* const backward = &*fields->backward;
  switch (reader->field()) {
    case BackwardRequestNumber::kForward:
      return reader->ReadMessage([&] {
        while (reader->Next()) ReadField(reader, fields);
      });
    case BackwardRequestNumber::kWantBiasGradient:
      reader->ReadBool(&backward->want_bias_gradient);
      return;
    case BackwardRequestNumber::kLse:
      return wire::ReadTensor("lse.shape", reader, &backward->lse);
    case BackwardRequestNumber::kO:
      return wire::ReadTensor("o.shape", reader, &backward->o);
    case BackwardRequestNumber::kDO:
      return wire::ReadTensor("d_o.shape", reader, &backward->d_o);
    case BackwardRequestNumber::kDQPlace:
      return ReadOptionalPlace(reader, &backward->dq_place);
    case BackwardRequestNumber::kDKPlace:
      return ReadOptionalPlace(reader, &backward->dk_place);
    case BackwardRequestNumber::kDVPlace:
      return ReadOptionalPlace(reader, &backward->dv_place);
    case BackwardRequestNumber::kDPhiQPlace:
      return ReadOptionalPlace(reader, &backward->dphi_q_place);
    case BackwardRequestNumber::kDPhiKPlace:
      return ReadOptionalPlace(reader, &backward->dphi_k_place);
    default:
      return reader->Skip();
  }
}

AttendFields EmptyFields(Direction direction) {
  AttendFields fields;
  if (direction == Direction::kBackward) fields.backward.emplace();
  return fields;
}

// All fields of the message at whose beginning `reader` stands.
void ReadFields(MessageReader* reader, AttendFields* fields) {
  while (reader->Next()) {
    if (fields->backward.has_value()) {
      ReadBackwardField(reader, fields);
    } else {
      ReadField(reader, fields);
    }
  }
}

absl::Status NoMessage(absl::Span<const grpc::Slice> slices, const char* type,
                       const MessageReader& reader) {
  size_t bytes = 0;
  for (const grpc::Slice& slice : slices) bytes += slice.size();
  return absl::InvalidArgumentError(absl::StrCat(
      "the message of ", bytes, " bytes is no flashbias.v1.", type, ": ", reader.error()));
}

// Of a oneof only the member that came last counts; the same one again merges.
void ReadStreamField(Direction direction, MessageReader* reader, StreamMessage* message) {
  switch (reader->field()) {
    case StreamNumber::kHeader:
      return reader->ReadMessage([&] {
        message->chunk.reset();
        if (!message->header.has_value()) {
          message->header = EmptyFields(direction);
          message->header->data_follows = true;
        }
        ReadFields(reader, &*message->header);
      });
    case StreamNumber::kChunk: {
      wire::Chunk chunk = message->chunk.value_or(wire::Chunk());
      if (wire::ReadChunk(reader, &chunk)) {
        message->header.reset();
        message->chunk = chunk;
      }
      return;
    }
    case StreamNumber::kMaxChunkBytes:
      reader->ReadVarint(&message->max_chunk_bytes);
      return;
    default:
      return reader->Skip();
  }
}

}  // namespace

absl::StatusOr<AttendFields> ReadAttendRequest(Direction direction,
                                               absl::Span<const grpc::Slice> slices) {
  AttendFields fields = EmptyFields(direction);
  MessageReader reader(slices);
  ReadFields(&reader, &fields);
  if (reader.ok()) return fields;
  return NoMessage(
      slices, direction == Direction::kForward ? "AttendRequest" : "AttendBackwardRequest", reader);
}

absl::StatusOr<StreamMessage> ReadAttendStreamRequest(Direction direction,
                                                      absl::Span<const grpc::Slice> slices) {
  StreamMessage message;
  MessageReader reader(slices);
  while (reader.Next()) ReadStreamField(direction, &reader, &message);
  if (reader.ok()) return message;
  return NoMessage(
      slices,
      direction == Direction::kForward ? "AttendStreamRequest" : "AttendBackwardStreamRequest",
      reader);
}

}  // namespace flashbias::server
