#include "server/codec.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flashbias/v1/attention.pb.h"

namespace flashbias::server {
namespace {

static_assert(v1::DTYPE_FLOAT16 == kWireFloat16 && v1::DTYPE_BFLOAT16 == kWireBFloat16 &&
                  v1::DTYPE_FLOAT32 == kWireFloat32,
              "attend_fields.h repeats the contract");
static_assert(v1::MASK_CAUSAL == kWireMaskCausal && v1::MASK_FULL == kWireMaskFull,
              "attend_fields.h repeats the contract");

class AttendStorage final : public ProblemStorage {
 public:
  std::unique_ptr<v1::AttendRequest> message;  // holds q, k, v and the factors
  std::vector<Sequence> sequences;
  std::vector<float> slopes;
  // Not initialised: the backend writes every element or the request fails.
  std::unique_ptr<std::byte[]> o;
  std::unique_ptr<float[]> lse;
};

absl::Span<const int64_t> View(const google::protobuf::RepeatedField<int64_t>& field) {
  return absl::MakeConstSpan(field.data(), static_cast<size_t>(field.size()));
}

TensorFields View(bool present, const v1::Tensor& tensor) {
  return {.present = present,
          .dtype = static_cast<int>(tensor.dtype()),
          .shape = View(tensor.shape()),
          .data = tensor.data()};
}

AttendFields View(const v1::AttendRequest& message) {
  AttendFields fields;
  fields.q_lens = View(message.q_lens());
  fields.kv_lens = View(message.kv_lens());
  fields.mask = static_cast<int>(message.mask());
  fields.left_window = message.left_window();
  fields.query_start = View(message.query_start());
  fields.key_start = View(message.key_start());
  if (message.has_softmax_scale()) fields.softmax_scale = message.softmax_scale();
  if (message.has_eps()) fields.eps = message.eps();
  fields.want_lse = message.want_lse();
  if (message.has_alibi()) {
    fields.bias = WireBias::kAlibi;
    fields.slopes = View(message.alibi().has_slopes(), message.alibi().slopes());
  } else if (message.has_low_rank()) {
    fields.bias = WireBias::kLowRank;
    fields.phi_q = View(message.low_rank().has_phi_q(), message.low_rank().phi_q());
    fields.phi_k = View(message.low_rank().has_phi_k(), message.low_rank().phi_k());
  }
  fields.q = View(message.has_q(), message.q());
  fields.k = View(message.has_k(), message.k());
  fields.v = View(message.has_v(), message.v());
  return fields;
}

// The tag of a bytes or message field (protobuf encoding: field number, wire type 2).
constexpr uint32_t LengthDelimitedTag(int field_number) {
  return static_cast<uint32_t>(field_number) << 3 | 2;
}

// Everything of a tensor field up to its elements: the field's tag and length, the tensor without
// data, the tag and length of data.
void AppendTensorHeader(int field_number, DType dtype, absl::Span<const int64_t> shape,
                        int64_t data_bytes, std::string* out) {
  using google::protobuf::io::CodedOutputStream;
  v1::Tensor tensor;
  switch (dtype) {
    case DType::kFloat16:
      tensor.set_dtype(v1::DTYPE_FLOAT16);
      break;
    case DType::kBFloat16:
      tensor.set_dtype(v1::DTYPE_BFLOAT16);
      break;
    case DType::kFloat32:
      tensor.set_dtype(v1::DTYPE_FLOAT32);
      break;
  }
  for (const int64_t extent : shape) tensor.add_shape(extent);
  const std::string head = tensor.SerializeAsString();

  const auto data_length = static_cast<uint64_t>(data_bytes);
  const uint32_t data_tag = LengthDelimitedTag(v1::Tensor::kDataFieldNumber);
  const uint64_t length = head.size() + CodedOutputStream::VarintSize32(data_tag) +
                          CodedOutputStream::VarintSize64(data_length) + data_length;

  google::protobuf::io::StringOutputStream stream(out);
  CodedOutputStream coded(&stream);
  coded.WriteTag(LengthDelimitedTag(field_number));
  coded.WriteVarint64(length);
  coded.WriteString(head);
  coded.WriteTag(data_tag);
  coded.WriteVarint64(data_length);
}

// A slice over memory that `storage` owns; it holds a reference until the transport is done.
grpc::Slice SliceOver(void* data, int64_t bytes, const std::shared_ptr<ProblemStorage>& storage) {
  auto* reference = new std::shared_ptr<ProblemStorage>(storage);
  return grpc::Slice(
      data, static_cast<size_t>(bytes),
      [](void* held) { delete static_cast<std::shared_ptr<ProblemStorage>*>(held); }, reference);
}

}  // namespace

absl::StatusOr<DecodedAttend> DecodeAttendRequest(grpc::ByteBuffer* message,
                                                  const AttendLimits& limits) {
  auto storage = std::make_unique<AttendStorage>();
  storage->message = std::make_unique<v1::AttendRequest>();
  const auto message_bytes = static_cast<int64_t>(message->Length());
  bool parsed = message_bytes == 0;  // an empty message has no slices to read
  if (!parsed) {
    grpc::ProtoBufferReader reader(message);
    parsed = reader.status().ok() && storage->message->ParseFromZeroCopyStream(&reader);
  }
  message->Clear();
  if (!parsed) {
    return absl::InvalidArgumentError(
        absl::StrCat("the message of ", message_bytes, " bytes is no flashbias.v1.AttendRequest"));
  }

  absl::StatusOr<ValidatedAttend> valid = ValidateAttend(View(*storage->message), limits);
  if (!valid.ok()) return valid.status();
  storage->sequences = std::move(valid->sequences);
  storage->slopes = std::move(valid->slopes);
  // At least one byte, so that o is never null.
  storage->o.reset(new std::byte[static_cast<size_t>(valid->o_bytes) + 1]);

  DecodedAttend decoded;
  decoded.problem = valid->problem;
  decoded.problem.sequences = storage->sequences;
  decoded.problem.o = storage->o.get();
  if (storage->message->want_lse()) {
    storage->lse.reset(new float[static_cast<size_t>(valid->lse_bytes) / sizeof(float) + 1]);
    decoded.problem.lse = storage->lse.get();
  }
  if (decoded.problem.bias_kind == BiasKind::kAlibi) {
    decoded.problem.alibi.slopes = storage->slopes.data();
  }
  decoded.bytes = message_bytes + valid->o_bytes + valid->lse_bytes;
  decoded.storage = std::move(storage);
  return decoded;
}

grpc::ByteBuffer EncodeAttendResponse(const AttentionProblem& problem,
                                      std::unique_ptr<ProblemStorage> storage,
                                      const ResponseTiming& timing) {
  auto* const attend = static_cast<AttendStorage*>(storage.get());
  attend->message.reset();  // the inputs need not wait for the transport
  const std::shared_ptr<ProblemStorage> shared = std::move(storage);

  v1::AttendResponse head;
  v1::Timing* const out = head.mutable_timing();
  out->set_receive_seconds(absl::ToDoubleSeconds(timing.receive));
  out->set_queue_seconds(absl::ToDoubleSeconds(timing.queue));
  out->set_compute_seconds(absl::ToDoubleSeconds(timing.compute));
  out->set_send_seconds(absl::ToDoubleSeconds(timing.send));
  out->set_batch_requests(timing.batch_requests);
  out->set_tiles_computed(timing.stats.tiles_computed);
  out->set_tiles_skipped(timing.stats.tiles_skipped);
  out->set_upload_seconds(absl::ToDoubleSeconds(timing.stats.upload));
  out->set_kernel_seconds(absl::ToDoubleSeconds(timing.stats.kernel));
  out->set_download_seconds(absl::ToDoubleSeconds(timing.stats.download));
  std::string header = head.SerializeAsString();

  std::vector<grpc::Slice> slices;
  const auto append = [&](int field, DType dtype, absl::Span<const int64_t> shape, void* data,
                          int64_t bytes) {
    AppendTensorHeader(field, dtype, shape, bytes, &header);
    slices.emplace_back(header);
    header.clear();
    if (bytes > 0) slices.push_back(SliceOver(data, bytes, shared));
  };
  const int64_t rows = problem.total_q * problem.num_q_heads;
  if (problem.lse != nullptr) {
    const int64_t shape[] = {problem.total_q, problem.num_q_heads};
    append(v1::AttendResponse::kLseFieldNumber, DType::kFloat32, shape, problem.lse,
           rows * static_cast<int64_t>(sizeof(float)));
  }
  const int64_t shape[] = {problem.total_q, problem.num_q_heads, problem.head_dim};
  append(v1::AttendResponse::kOFieldNumber, problem.dtype, shape, problem.o,
         rows * problem.head_dim * static_cast<int64_t>(SizeOf(problem.dtype)));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace flashbias::server
