#include "client/wire_codec.h"

#include <bit>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"

namespace flashbias::client {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensors travel little-endian and are copied as they lie in memory");

v1::DType ToWire(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return v1::DTYPE_FLOAT16;
    case DType::kBFloat16:
      return v1::DTYPE_BFLOAT16;
    case DType::kFloat32:
      return v1::DTYPE_FLOAT32;
  }
  return v1::DTYPE_UNSPECIFIED;
}

std::optional<DType> FromWire(int dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT16:
      return DType::kFloat16;
    case v1::DTYPE_BFLOAT16:
      return DType::kBFloat16;
    case v1::DTYPE_FLOAT32:
      return DType::kFloat32;
    default:
      return std::nullopt;
  }
}

void EncodeTensor(const TensorView& tensor, v1::Tensor* message) {
  message->set_dtype(ToWire(tensor.dtype));
  size_t bytes = SizeOf(tensor.dtype);
  for (const int64_t extent : tensor.shape) {
    message->add_shape(extent);
    bytes *= static_cast<size_t>(extent);
  }
  if (bytes > 0) message->set_data(tensor.data, bytes);
}

std::vector<int64_t> Shape(const v1::Tensor& tensor) {
  return {tensor.shape().begin(), tensor.shape().end()};
}

absl::StatusOr<std::vector<float>> DecodeLse(const RequestSummary& request,
                                             const v1::Tensor& tensor) {
  const std::vector<int64_t> shape = {request.total_q, request.num_q_heads};
  if (tensor.dtype() != v1::DTYPE_FLOAT32 || Shape(tensor) != shape) {
    return absl::InternalError(
        absl::StrCat("the server answered lse of another dtype or shape; expected: float32 [",
                     request.total_q, ", ", request.num_q_heads, "]"));
  }
  if (tensor.data().size() % sizeof(float) != 0) {
    return absl::InternalError(absl::StrCat("the server answered lse with ", tensor.data().size(),
                                            " bytes; expected: a multiple of 4"));
  }
  std::vector<float> lse(tensor.data().size() / sizeof(float));
  if (!lse.empty()) std::memcpy(lse.data(), tensor.data().data(), tensor.data().size());
  return lse;
}

}  // namespace

void EncodeRequest(const AttendRequest& request, v1::AttendRequest* message) {
  message->mutable_q_lens()->Assign(request.q_lens.begin(), request.q_lens.end());
  message->mutable_kv_lens()->Assign(request.kv_lens.begin(), request.kv_lens.end());
  message->set_mask(request.mask == MaskKind::kCausal ? v1::MASK_CAUSAL : v1::MASK_FULL);
  message->set_left_window(request.left_window);
  message->mutable_query_start()->Assign(request.query_start.begin(), request.query_start.end());
  message->mutable_key_start()->Assign(request.key_start.begin(), request.key_start.end());
  if (request.softmax_scale.has_value()) message->set_softmax_scale(*request.softmax_scale);
  if (request.eps.has_value()) message->set_eps(*request.eps);
  message->set_want_lse(request.want_lse);
  if (const auto* alibi = std::get_if<AlibiSlopes>(&request.bias)) {
    const int64_t q_heads = request.q.shape[1];
    const auto count = static_cast<int64_t>(alibi->slopes.size());
    TensorView slopes{.dtype = DType::kFloat32, .shape = {count}, .data = alibi->slopes.data()};
    if (count != q_heads) slopes.shape = {count / q_heads, q_heads};
    EncodeTensor(slopes, message->mutable_alibi()->mutable_slopes());
  } else if (const auto* low_rank = std::get_if<LowRankFactors>(&request.bias)) {
    EncodeTensor(low_rank->phi_q, message->mutable_low_rank()->mutable_phi_q());
    EncodeTensor(low_rank->phi_k, message->mutable_low_rank()->mutable_phi_k());
  }
  EncodeTensor(request.q, message->mutable_q());
  EncodeTensor(request.k, message->mutable_k());
  EncodeTensor(request.v, message->mutable_v());
}

absl::StatusOr<AttendResult> DecodeResult(const RequestSummary& request,
                                          v1::AttendResponse&& message) {
  const std::optional<DType> dtype = FromWire(message.o().dtype());
  if (!dtype.has_value()) {
    return absl::InternalError(absl::StrCat("the server answered o of dtype number ",
                                            static_cast<int>(message.o().dtype()),
                                            "; expected: ", Name(request.dtype)));
  }
  AttendResult result{.dtype = *dtype, .shape = Shape(message.o())};
  if (request.want_lse) {
    absl::StatusOr<std::vector<float>> lse = DecodeLse(request, message.lse());
    if (!lse.ok()) return lse.status();
    result.lse = *std::move(lse);
  }
  result.o = std::move(*message.mutable_o()->mutable_data());
  const v1::Timing& timing = message.timing();
  result.timing = {.receive = absl::Seconds(timing.receive_seconds()),
                   .queue = absl::Seconds(timing.queue_seconds()),
                   .compute = absl::Seconds(timing.compute_seconds()),
                   .send = absl::Seconds(timing.send_seconds()),
                   .batch_requests = timing.batch_requests(),
                   .tiles_computed = timing.tiles_computed(),
                   .tiles_skipped = timing.tiles_skipped(),
                   .upload = absl::Seconds(timing.upload_seconds()),
                   .kernel = absl::Seconds(timing.kernel_seconds()),
                   .download = absl::Seconds(timing.download_seconds())};
  if (absl::Status status = CheckResult(request, result); !status.ok()) return status;
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
      .default_eps = message.default_eps(),
      .max_eps = message.max_eps()};
  // A dtype that this client does not know is one that it cannot send.
  for (const int wire : message.dtypes()) {
    if (const std::optional<DType> dtype = FromWire(wire)) info.dtypes.push_back(*dtype);
  }
  return info;
}

absl::Status ToStatus(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

}  // namespace flashbias::client
