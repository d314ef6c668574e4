#include "client/wire_codec.h"

#include <bit>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
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

  grpc::ByteBuffer Take() {
    if (writer_.size() > 0 || slices_.empty()) slices_.emplace_back(writer_.Take());
    return grpc::ByteBuffer(slices_.data(), slices_.size());
  }

 private:
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

// That a tensor is where it was asked for.
absl::Status CheckPlace(const char* name, const wire::TensorField& tensor, const Place& place) {
  const wire::RegionPlace expected = place.value_or(wire::RegionPlace());
  if (tensor.place.region_id == expected.region_id && tensor.place.offset == expected.offset &&
      (!place.has_value() || tensor.data.size == 0)) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat("the server answered ", name, " elsewhere; expected: ",
                                          place.has_value() ? "in its region" : "in the answer"));
}

absl::Status CheckLse(const RequestSummary& request, const wire::TensorField& lse) {
  const std::vector<int64_t> shape = {request.total_q, request.num_q_heads};
  if (lse.dtype != wire::kFloat32 || lse.shape != shape) {
    return absl::InternalError(
        absl::StrCat("the server answered lse of another dtype or shape; expected: float32 [",
                     request.total_q, ", ", request.num_q_heads, "]"));
  }
  if (lse.data.size % sizeof(float) != 0) {
    return absl::InternalError(absl::StrCat("the server answered lse with ", lse.data.size,
                                            " bytes; expected: a multiple of 4"));
  }
  return absl::OkStatus();
}

// All fields of a request. With `data_follows` only the slopes have their elements, and nothing is
// placed.
void AppendRequest(const AttendRequest& request, const RegionPlacement& placement,
                   bool data_follows, MessageSlices* slices) {
  const auto carried = [&](const TensorView& tensor, const Place& place) {
    const bool inside = !data_follows && !place.has_value();
    return Carried{.tensor = tensor, .bytes = inside ? TensorBytes(tensor) : 0, .place = place};
  };
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
  writer.Bool(RequestNumber::kWantLse, request.want_lse);
  if (const auto* alibi = std::get_if<AlibiSlopes>(&request.bias)) {
    const int64_t q_heads = request.q.shape[1];
    const auto count = static_cast<int64_t>(alibi->slopes.size());
    TensorView slopes{.dtype = DType::kFloat32, .shape = {count}, .data = alibi->slopes.data()};
    if (count != q_heads) slopes.shape = {count / q_heads, q_heads};
    const Carried whole = {.tensor = slopes, .bytes = TensorBytes(slopes)};
    writer.LengthDelimited(RequestNumber::kAlibi, FieldSize(AlibiNumber::kSlopes, whole));
    slices->Append(AlibiNumber::kSlopes, whole);
  } else if (const auto* low_rank = std::get_if<LowRankFactors>(&request.bias)) {
    const Carried phi_q = carried(low_rank->phi_q, placement.phi_q);
    const Carried phi_k = carried(low_rank->phi_k, placement.phi_k);
    writer.LengthDelimited(RequestNumber::kLowRank, FieldSize(LowRankNumber::kPhiQ, phi_q) +
                                                        FieldSize(LowRankNumber::kPhiK, phi_k));
    slices->Append(LowRankNumber::kPhiQ, phi_q);
    slices->Append(LowRankNumber::kPhiK, phi_k);
  }
  slices->Append(RequestNumber::kQ, carried(request.q, placement.q));
  slices->Append(RequestNumber::kK, carried(request.k, placement.k));
  slices->Append(RequestNumber::kV, carried(request.v, placement.v));
  if (placement.o.has_value()) writer.Place(RequestNumber::kOPlace, *placement.o);
  if (placement.lse.has_value()) writer.Place(RequestNumber::kLsePlace, *placement.lse);
}

}  // namespace

grpc::ByteBuffer EncodeRequest(const AttendRequest& request, const RegionPlacement& placement,
                               TensorLoans& loans) {
  MessageSlices slices(loans);
  AppendRequest(request, placement, /*data_follows=*/false, &slices);
  return slices.Take();
}

grpc::ByteBuffer EncodeStreamHeader(const AttendRequest& request, int64_t max_chunk_bytes,
                                    TensorLoans& loans) {
  MessageSlices fields(loans);
  AppendRequest(request, {}, /*data_follows=*/true, &fields);
  const grpc::ByteBuffer header = fields.Take();
  wire::MessageWriter writer;
  writer.Varint(StreamNumber::kMaxChunkBytes, max_chunk_bytes);
  writer.LengthDelimited(StreamNumber::kHeader, header.Length());
  std::vector<grpc::Slice> slices;
  // Of a buffer that was just made it cannot fail.
  if (!header.Dump(&slices).ok()) slices.clear();
  slices.insert(slices.begin(), grpc::Slice(writer.Take()));
  return grpc::ByteBuffer(slices.data(), slices.size());
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

void ReadResponse(wire::MessageReader* reader, ResponseFields* response) {
  while (reader->Next()) {
    switch (reader->field()) {
      case ResponseNumber::kTiming:
        ReadTiming(reader, &response->timing);
        break;
      case ResponseNumber::kLse:
        wire::ReadTensor("lse.shape", reader, &response->lse);
        break;
      case ResponseNumber::kO:
        wire::ReadTensor("o.shape", reader, &response->o);
        break;
      default:
        reader->Skip();
    }
  }
}

absl::Status CheckResponse(const RequestSummary& request, const ResponseFields& response) {
  const std::optional<DType> dtype = wire::DTypeFromWire(response.o.dtype);
  if (!dtype.has_value()) {
    return absl::InternalError(absl::StrCat("the server answered o of dtype number ",
                                            response.o.dtype, "; expected: ", Name(request.dtype)));
  }
  AnswerSummary answer = {.dtype = *dtype,
                          .shape = response.o.shape,
                          .o_bytes = static_cast<int64_t>(response.o.data.size)};
  if (request.want_lse) {
    if (absl::Status status = CheckLse(request, response.lse); !status.ok()) return status;
    answer.lse_values = static_cast<int64_t>(response.lse.data.size / sizeof(float));
  }
  return CheckAnswer(request, answer);
}

absl::StatusOr<AttendResult> DecodeResult(const RequestSummary& request,
                                          const ResultBuffers& buffers,
                                          const RegionPlacement& placement,
                                          grpc::ByteBuffer* message) {
  const absl::StatusOr<std::vector<grpc::Slice>> slices = TakeSlices(message);
  if (!slices.ok()) return slices.status();
  MessageReader reader(*slices);
  ResponseFields response;
  ReadResponse(&reader, &response);
  if (!reader.ok()) return NoMessage(*slices, "AttendResponse", reader);
  for (const auto& [name, tensor, place] : {std::tuple{"o", &response.o, &placement.o},
                                            std::tuple{"lse", &response.lse, &placement.lse}}) {
    if (absl::Status status = CheckPlace(name, *tensor, *place); !status.ok()) return status;
  }
  ResponseFields whole = response;
  // As if the elements were in the message: those in a region are what their buffer holds.
  if (placement.o.has_value()) whole.o.data.size = buffers.o.size();
  if (placement.lse.has_value()) whole.lse.data.size = buffers.lse.size() * sizeof(float);
  if (absl::Status status = CheckResponse(request, whole); !status.ok()) return status;

  AttendResult result{
      .dtype = request.dtype, .shape = std::move(response.o.shape), .timing = response.timing};
  if (placement.o.has_value()) {
    // It is there.
  } else if (!buffers.o.empty()) {
    const wire::GatherItem o = {.from = response.o.data, .to = buffers.o.data()};
    wire::Gather(*slices, {&o, 1}, nullptr);
  } else {
    wire::AppendTo(*slices, response.o.data, &result.o);
  }
  if (request.want_lse && !placement.lse.has_value()) {
    float* to = buffers.lse.data();
    if (buffers.lse.empty()) {
      result.lse.resize(response.lse.data.size / sizeof(float));
      to = result.lse.data();
    }
    const wire::GatherItem lse = {.from = response.lse.data, .to = to};
    wire::Gather(*slices, {&lse, 1}, nullptr);
  }
  return result;
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
