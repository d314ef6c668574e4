#include "client/wire_codec.h"

#include <bit>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/request_validation.h"
#include "grpcpp/support/slice.h"
#include "wire/contract.h"
#include "wire/gather.h"
#include "wire/message_reader.h"
#include "wire/message_writer.h"
#include "wire/tensor_reader.h"

namespace flashbias::client {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensors travel little-endian, as they lie in memory");

using wire::AlibiNumber;
using wire::BackwardRequestNumber;
using wire::LowRankNumber;
using wire::MessageReader;
using wire::RequestNumber;
using wire::ResponseNumber;
using wire::StreamNumber;
using wire::TimingNumber;

// Smaller tensors are copied: a slice of its own costs more, and their memory is free at once.
constexpr size_t kLendFrom = size_t{16} << 10;

size_t TensorBytes(const TensorView& tensor) {
  size_t bytes = SizeOf(tensor.dtype);
  for (const int64_t extent : tensor.shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}

using Place = std::optional<wire::RegionPlace>;

// A tensor of a message: where it lies and how much of it the message itself holds.
struct Carried {
  const TensorView& tensor;
  size_t bytes = 0;  // 0 in a region and where the elements follow
  Place place = {};
};

uint64_t FieldSize(int field, const Carried& carried) {
  const TensorView& tensor = carried.tensor;
  if (carried.place.has_value()) {
    return wire::TensorInRegionSize(field, tensor.dtype, tensor.shape, *carried.place);
  }
  return wire::TensorFieldSize(field, tensor.dtype, tensor.shape, carried.bytes);
}

// The slices of a message: small bytes gather in a writer until a tensor is lent.
class MessageSlices {
 public:
  explicit MessageSlices(TensorLoans& loans) : loans_(loans) {}

  // For a message within this one.
  MessageSlices Nested() const { return MessageSlices(loans_); }

  wire::MessageWriter& writer() { return writer_; }

  void Append(int field, const Carried& carried) {
    const TensorView& tensor = carried.tensor;
    if (carried.place.has_value()) {
      writer_.TensorInRegion(field, tensor.dtype, tensor.shape, *carried.place);
      return;
    }
    const size_t bytes = carried.bytes;
    writer_.TensorHeader(field, tensor.dtype, tensor.shape, bytes);
    if (bytes < kLendFrom) {
      if (bytes > 0) writer_.Bytes(tensor.data, bytes);
      return;
    }
    slices_.emplace_back(writer_.Take());
    slices_.push_back(loans_.Lend(tensor.data, bytes));
  }

  // The fields that `message` gathered, as a field of this one.
  void AppendMessage(int field, MessageSlices message) {
    message.Flush();
    uint64_t size = 0;
    for (const grpc::Slice& slice : message.slices_) size += slice.size();
    writer_.LengthDelimited(field, size);
    if (size == 0) return;
    Flush();
    for (grpc::Slice& slice : message.slices_) slices_.push_back(std::move(slice));
  }

  grpc::ByteBuffer Take() {
    if (writer_.size() > 0 || slices_.empty()) slices_.emplace_back(writer_.Take());
    return grpc::ByteBuffer(slices_.data(), slices_.size());
  }

 private:
  void Flush() {
    if (writer_.size() > 0) slices_.emplace_back(writer_.Take());
  }

  TensorLoans& loans_;
  wire::MessageWriter writer_;
  std::vector<grpc::Slice> slices_;
};

void ReadSeconds(MessageReader* reader, absl::Duration* duration) {
  double seconds = 0;
  if (reader->ReadDouble(&seconds)) *duration = absl::Seconds(seconds);
}

void ReadTiming(MessageReader* reader, Timing* timing) {
  reader->ReadMessage([&] {
    while (reader->Next()) {
      switch (reader->field()) {
        case TimingNumber::kReceiveSeconds:
          ReadSeconds(reader, &timing->receive);
          break;
        case TimingNumber::kQueueSeconds:
          ReadSeconds(reader, &timing->queue);
          break;
        case TimingNumber::kComputeSeconds:
          ReadSeconds(reader, &timing->compute);
          break;
        case TimingNumber::kSendSeconds:
          ReadSeconds(reader, &timing->send);
          break;
        case TimingNumber::kBatchRequests:
          reader->ReadVarint(&timing->batch_requests);
          break;
        case TimingNumber::kTilesComputed:
          reader->ReadVarint(&timing->tiles_computed);
          break;
        case TimingNumber::kTilesSkipped:
          reader->ReadVarint(&timing->tiles_skipped);
          break;
        case TimingNumber::kUploadSeconds:
          ReadSeconds(reader, &timing->upload);
          break;
        case TimingNumber::kKernelSeconds:
          ReadSeconds(reader, &timing->kernel);
          break;
        case TimingNumber::kDownloadSeconds:
          ReadSeconds(reader, &timing->download);
          break;
        default:
          reader->Skip();
      }
    }
  });
}

// How a request carries its tensors. Where they follow, only the slopes have their elements, and
// nothing is placed.
struct Carriage {
  const RegionPlacement& placement;
  bool data_follows = false;

  Carried operator()(const TensorView& tensor, const Place& place) const {
    const bool inside = !data_follows && !place.has_value();
    return {.tensor = tensor, .bytes = inside ? TensorBytes(tensor) : 0, .place = place};
  }
};

TensorView LseView(const AttendBackwardRequest& request) {
  const std::vector<int64_t>& q = request.forward.q.shape;
  return {.dtype = DType::kFloat32, .shape = {q[0], q[1]}, .data = request.lse.data()};
}

// All fields of a forward request but its places.
void AppendFields(const AttendRequest& request, bool want_lse, const Carriage& carried,
                  MessageSlices* slices) {
  wire::MessageWriter& writer = slices->writer();
  writer.Packed(RequestNumber::kQLens, request.q_lens);
  writer.Packed(RequestNumber::kKvLens, request.kv_lens);
  writer.Varint(RequestNumber::kMask,
                request.mask == MaskKind::kCausal ? wire::kMaskCausal : wire::kMaskFull);
  writer.Varint(RequestNumber::kLeftWindow, request.left_window);
  writer.PackedZigzag(RequestNumber::kQueryStart, request.query_start);
  writer.PackedZigzag(RequestNumber::kKeyStart, request.key_start);
  if (request.softmax_scale.has_value()) {
    writer.Float(RequestNumber::kSoftmaxScale, *request.softmax_scale);
  }
  if (request.eps.has_value()) writer.Float(RequestNumber::kEps, *request.eps);
  writer.Bool(RequestNumber::kWantLse, want_lse);
  if (const auto* alibi = std::get_if<AlibiSlopes>(&request.bias)) {
    const TensorView slopes{.dtype = DType::kFloat32,
                            .shape = ShapeOfSlopes(*alibi, request.q.shape[1]),
                            .data = alibi->slopes.data()};
    const Carried whole = {.tensor = slopes, .bytes = TensorBytes(slopes)};
    writer.LengthDelimited(RequestNumber::kAlibi, FieldSize(AlibiNumber::kSlopes, whole));
    slices->Append(AlibiNumber::kSlopes, whole);
  } else if (const auto* low_rank = std::get_if<LowRankFactors>(&request.bias)) {
    const Carried phi_q = carried(low_rank->phi_q, carried.placement.phi_q);
    const Carried phi_k = carried(low_rank->phi_k, carried.placement.phi_k);
    writer.LengthDelimited(RequestNumber::kLowRank, FieldSize(LowRankNumber::kPhiQ, phi_q) +
                                                        FieldSize(LowRankNumber::kPhiK, phi_k));
    slices->Append(LowRankNumber::kPhiQ, phi_q);
    slices->Append(LowRankNumber::kPhiK, phi_k);
  }
  slices->Append(RequestNumber::kQ, carried(request.q, carried.placement.q));
  slices->Append(RequestNumber::kK, carried(request.k, carried.placement.k));
  slices->Append(RequestNumber::kV, carried(request.v, carried.placement.v));
}

void AppendRequest(const AttendRequest& request, const Carriage& carried, MessageSlices* slices) {
  AppendFields(request, request.want_lse, carried, slices);
}

void AppendRequest(const AttendBackwardRequest& request, const Carriage& carried,
                   MessageSlices* slices) {
  MessageSlices forward = slices->Nested();
  AppendFields(request.forward, /*want_lse=*/false, carried, &forward);
  slices->AppendMessage(BackwardRequestNumber::kForward, std::move(forward));
  slices->writer().Bool(BackwardRequestNumber::kWantBiasGradient, request.want_bias_gradient);
  const TensorView lse = LseView(request);
  slices->Append(BackwardRequestNumber::kLse, carried(lse, carried.placement.lse));
  slices->Append(BackwardRequestNumber::kO, carried(request.o, carried.placement.o));
  slices->Append(BackwardRequestNumber::kDO, carried(request.d_o, carried.placement.d_o));
}

template <typename Request>
grpc::ByteBuffer Encode(const Request& request, const RegionPlacement& placement,
                        const Answer& answer, TensorLoans& loans) {
  MessageSlices slices(loans);
  AppendRequest(request, {.placement = placement}, &slices);
  for (const AnswerTensor& tensor : answer.tensors) {
    if (tensor.place.has_value()) slices.writer().Place(tensor.place_number, *tensor.place);
  }
  return slices.Take();
}

template <typename Request>
grpc::ByteBuffer EncodeHeader(const Request& request, int64_t max_chunk_bytes, TensorLoans& loans) {
  const RegionPlacement nowhere;
  MessageSlices message(loans);
  message.writer().Varint(StreamNumber::kMaxChunkBytes, max_chunk_bytes);
  MessageSlices header = message.Nested();
  AppendRequest(request, {.placement = nowhere, .data_follows = true}, &header);
  message.AppendMessage(StreamNumber::kHeader, std::move(header));
  return message.Take();
}

wire::OutgoingTensor Outgoing(int number, const TensorView& tensor) {
  return {.number = number,
          .data = static_cast<const char*>(tensor.data),
          .bytes = TensorBytes(tensor)};
}

}  // namespace

MethodNames NamesOf(const AttendRequest& /*request*/) {
  return {.path = wire::kAttendMethod,
          .stream_path = wire::kAttendStreamMethod,
          .response = "AttendResponse",
          .stream_response = "AttendStreamResponse"};
}

MethodNames NamesOf(const AttendBackwardRequest& /*request*/) {
  return {.path = wire::kAttendBackwardMethod,
          .stream_path = wire::kAttendBackwardStreamMethod,
          .response = "AttendBackwardResponse",
          .stream_response = "AttendBackwardStreamResponse"};
}

grpc::ByteBuffer EncodeRequest(const AttendRequest& request, const RegionPlacement& placement,
                               const Answer& answer, TensorLoans& loans) {
  return Encode(request, placement, answer, loans);
}

grpc::ByteBuffer EncodeRequest(const AttendBackwardRequest& request,
                               const RegionPlacement& placement, const Answer& answer,
                               TensorLoans& loans) {
  return Encode(request, placement, answer, loans);
}

grpc::ByteBuffer EncodeStreamHeader(const AttendRequest& request, int64_t max_chunk_bytes,
                                    TensorLoans& loans) {
  return EncodeHeader(request, max_chunk_bytes, loans);
}

grpc::ByteBuffer EncodeStreamHeader(const AttendBackwardRequest& request, int64_t max_chunk_bytes,
                                    TensorLoans& loans) {
  return EncodeHeader(request, max_chunk_bytes, loans);
}

std::vector<wire::OutgoingTensor> OutgoingTensors(const AttendRequest& request) {
  std::vector<wire::OutgoingTensor> tensors = {Outgoing(wire::kStreamQ, request.q),
                                               Outgoing(wire::kStreamK, request.k),
                                               Outgoing(wire::kStreamV, request.v)};
  if (const auto* low_rank = std::get_if<LowRankFactors>(&request.bias)) {
    tensors.push_back(Outgoing(wire::kStreamPhiQ, low_rank->phi_q));
    tensors.push_back(Outgoing(wire::kStreamPhiK, low_rank->phi_k));
  }
  return tensors;
}

std::vector<wire::OutgoingTensor> OutgoingTensors(const AttendBackwardRequest& request) {
  std::vector<wire::OutgoingTensor> tensors = OutgoingTensors(request.forward);
  tensors.push_back(Outgoing(wire::kStreamLse, LseView(request)));
  tensors.push_back(Outgoing(wire::kStreamO, request.o));
  tensors.push_back(Outgoing(wire::kStreamDO, request.d_o));
  return tensors;
}

absl::StatusOr<std::vector<grpc::Slice>> TakeSlices(grpc::ByteBuffer* message) {
  std::vector<grpc::Slice> slices;
  if (message->Length() > 0 && !message->Dump(&slices).ok()) {
    return absl::InternalError("the answer's bytes cannot be had from the transport");
  }
  message->Clear();
  return slices;
}

absl::Status NoMessage(absl::Span<const grpc::Slice> slices, const char* type,
                       const wire::MessageReader& reader) {
  size_t bytes = 0;
  for (const grpc::Slice& slice : slices) bytes += slice.size();
  return absl::InternalError(absl::StrCat("the server answered ", bytes, " bytes that are no ",
                                          type, ": ", reader.error()));
}

void ReadAnswer(const Answer& expected, wire::MessageReader* reader, AnswerFields* fields) {
  fields->tensors.resize(expected.tensors.size());
  while (reader->Next()) {
    if (reader->field() == ResponseNumber::kTiming) {
      ReadTiming(reader, &fields->timing);
      continue;
    }
    wire::TensorField* field = nullptr;
    std::string name;  // for errors
    for (size_t n = 0; n < expected.tensors.size(); ++n) {
      if (expected.tensors[n].response_number != reader->field()) continue;
      field = &fields->tensors[n];
      name = absl::StrCat(expected.tensors[n].name, ".shape");
    }
    if (field != nullptr) {
      wire::ReadTensor(name.c_str(), reader, field);
    } else {
      reader->Skip();
    }
  }
}

absl::Status DecodeAnswer(const char* name, grpc::ByteBuffer* message, Answer* answer) {
  const absl::StatusOr<std::vector<grpc::Slice>> slices = TakeSlices(message);
  if (!slices.ok()) return slices.status();
  MessageReader reader(*slices);
  AnswerFields fields;
  ReadAnswer(*answer, &reader, &fields);
  if (!reader.ok()) return NoMessage(*slices, name, reader);
  absl::Status fits = CheckAnswer(*answer, fields, /*data_follows=*/false);
  if (!fits.ok()) return fits;

  answer->timing = fields.timing;
  std::vector<wire::GatherItem> items;
  for (size_t n = 0; n < fields.tensors.size(); ++n) {
    AnswerTensor& tensor = answer->tensors[n];
    const wire::ByteRange data = fields.tensors[n].data;
    if (tensor.place.has_value()) continue;  // it is there
    if (tensor.buffer.empty() && !tensor.as_floats) {
      wire::AppendTo(*slices, data, &tensor.own_bytes);
    } else {
      items.push_back({.from = data, .to = tensor.Allocate()});
    }
  }
  wire::Gather(*slices, items, nullptr);
  return absl::OkStatus();
}

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& message) {
  ServerInfo info{
      .version = message.version(),
      .backend = message.backend(),
      .devices = {message.devices().begin(), message.devices().end()},
      .max_head_dim = message.max_head_dim(),
      .fast_head_dims = {message.fast_head_dims().begin(), message.fast_head_dims().end()},
      .max_rank = message.max_rank(),
      .max_message_bytes = message.max_message_bytes(),
      .max_queue_requests = message.max_queue_requests(),
      .max_queue_bytes = message.max_queue_bytes(),
      .max_stream_bytes = message.max_stream_bytes(),
      .default_eps = message.default_eps(),
      .max_eps = message.max_eps()};
  // A dtype that this client does not know is one that it cannot send.
  for (const int number : message.dtypes()) {
    if (const std::optional<DType> dtype = wire::DTypeFromWire(number))
      info.dtypes.push_back(*dtype);
  }
  return info;
}

absl::Status ToStatus(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

}  // namespace flashbias::client
