#include "client/answer.h"

#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/request_validation.h"
#include "wire/contract.h"

namespace flashbias::client {
namespace {

using wire::BackwardRequestNumber;
using wire::BackwardResponseNumber;
using wire::RequestNumber;
using wire::ResponseNumber;

std::string Format(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

template <typename... Args>
absl::Status Internal(const Args&... args) {
  return absl::InternalError(absl::StrCat("the server answered ", args...));
}

absl::Span<char> BytesOf(absl::Span<float> floats) {
  return {reinterpret_cast<char*>(floats.data()), floats.size() * sizeof(float)};
}

// Numbers and names of one tensor, its dtype and shape yet to be filled in.
AnswerTensor Tensor(const char* name, const char* buffer_name, int response_number,
                    int stream_number, int place_number) {
  return {.name = name,
          .buffer_name = buffer_name,
          .response_number = response_number,
          .stream_number = stream_number,
          .place_number = place_number};
}

// Adds tensors to an answer and keeps the first error.
class Builder {
 public:
  void AddLike(AnswerTensor tensor, const TensorView& like, absl::Span<char> buffer) {
    tensor.dtype = like.dtype;
    tensor.shape = like.shape;
    tensor.buffer = buffer;
    Add(std::move(tensor));
  }
  // float32.
  void AddFloats(AnswerTensor tensor, std::vector<int64_t> shape, absl::Span<float> buffer) {
    tensor.shape = std::move(shape);
    tensor.as_floats = true;
    tensor.buffer = BytesOf(buffer);
    Add(std::move(tensor));
  }
  // That no buffer was given for a tensor which is not answered.
  void CheckNone(const char* buffer_name, absl::Span<float> buffer, const char* why) {
    if (!status_.ok() || buffer.empty()) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat(buffer_name, " has ", buffer.size(), " values; accepted: 0, because ", why));
  }

  absl::StatusOr<Answer> Take() {
    if (!status_.ok()) return status_;
    return std::move(answer_);
  }

 private:
  void Add(AnswerTensor tensor) {
    tensor.bytes = SaturatedBytes(tensor.dtype, tensor.shape);
    const auto given = static_cast<int64_t>(tensor.buffer.size());
    if (status_.ok() && given != 0 && given != tensor.bytes) {
      const auto unit = tensor.as_floats ? static_cast<int64_t>(sizeof(float)) : int64_t{1};
      status_ = absl::InvalidArgumentError(absl::StrCat(
          tensor.buffer_name, " has ", given / unit, tensor.as_floats ? " values" : " bytes",
          "; accepted: ", tensor.bytes / unit, ", what ", tensor.name, " ", Format(tensor.shape),
          " of ", Name(tensor.dtype), " takes, or none"));
    }
    answer_.tensors.push_back(std::move(tensor));
  }

  Answer answer_;
  absl::Status status_;
};

absl::Status CheckTensor(const AnswerTensor& expected, const wire::TensorField& field,
                         bool data_follows) {
  const char* const name = expected.name;
  const std::optional<DType> dtype = wire::DTypeFromWire(field.dtype);
  if (!dtype.has_value()) {
    return Internal(name, " of dtype number ", field.dtype, "; expected: ", Name(expected.dtype));
  }
  if (*dtype != expected.dtype) {
    return Internal(name, " of ", Name(*dtype), "; expected: ", Name(expected.dtype));
  }
  if (field.shape != expected.shape) {
    return Internal(name, " of shape ", Format(field.shape),
                    "; expected: ", Format(expected.shape));
  }
  const wire::RegionPlace place = expected.place.value_or(wire::RegionPlace());
  if (field.place.region_id != place.region_id || field.place.offset != place.offset) {
    return Internal(name, " elsewhere; expected: ",
                    expected.place.has_value() ? "in its region" : "in the answer");
  }
  const bool has_data = !data_follows && !expected.place.has_value();
  const int64_t bytes = has_data ? expected.bytes : 0;
  if (static_cast<int64_t>(field.data.size) != bytes) {
    return Internal(name, " with ", field.data.size, " bytes; expected: ", bytes, " for shape ",
                    Format(expected.shape), " of ", Name(expected.dtype),
                    has_data ? "" : ", whose elements are not there");
  }
  return absl::OkStatus();
}

// The tensor with this number, or an empty one.
AnswerTensor Take(int stream_number, Answer* answer) {
  for (AnswerTensor& tensor : answer->tensors) {
    if (tensor.stream_number == stream_number) return std::move(tensor);
  }
  return {};
}

}  // namespace

char* AnswerTensor::Allocate() {
  if (!buffer.empty()) return buffer.data();
  if (as_floats) {
    own_floats.resize(static_cast<size_t>(bytes) / sizeof(float));
    return reinterpret_cast<char*>(own_floats.data());
  }
  own_bytes.resize(static_cast<size_t>(bytes));
  return own_bytes.data();
}

int64_t Answer::bytes() const {
  int64_t sum = 0;
  for (const AnswerTensor& tensor : tensors) sum = SaturatingAdd(sum, tensor.bytes);
  return sum;
}

absl::StatusOr<Answer> ExpectAnswer(const AttendRequest& request, const ResultBuffers& buffers) {
  Builder builder;
  builder.AddLike(
      Tensor("o", "result.o", ResponseNumber::kO, wire::kStreamO, RequestNumber::kOPlace),
      request.q, buffers.o);
  if (request.want_lse) {
    builder.AddFloats(Tensor("lse", "result.lse", ResponseNumber::kLse, wire::kStreamLse,
                             RequestNumber::kLsePlace),
                      {request.q.shape[0], request.q.shape[1]}, buffers.lse);
  } else {
    builder.CheckNone("result.lse", buffers.lse, "want_lse is false");
  }
  return builder.Take();
}

absl::StatusOr<Answer> ExpectAnswer(const AttendBackwardRequest& request,
                                    const GradientBuffers& buffers) {
  const AttendRequest& forward = request.forward;
  Builder builder;
  builder.AddLike(Tensor("dq", "gradients.dq", BackwardResponseNumber::kDQ, wire::kStreamDQ,
                         BackwardRequestNumber::kDQPlace),
                  forward.q, buffers.dq);
  builder.AddLike(Tensor("dk", "gradients.dk", BackwardResponseNumber::kDK, wire::kStreamDK,
                         BackwardRequestNumber::kDKPlace),
                  forward.k, buffers.dk);
  builder.AddLike(Tensor("dv", "gradients.dv", BackwardResponseNumber::kDV, wire::kStreamDV,
                         BackwardRequestNumber::kDVPlace),
                  forward.v, buffers.dv);
  const auto* alibi = std::get_if<AlibiSlopes>(&forward.bias);
  const auto* low_rank = std::get_if<LowRankFactors>(&forward.bias);
  if (!request.want_bias_gradient) alibi = nullptr;
  if (!request.want_bias_gradient) low_rank = nullptr;
  const char* const unwanted =
      request.want_bias_gradient ? "the bias is another" : "want_bias_gradient is false";
  if (low_rank != nullptr) {
    builder.AddFloats(Tensor("dphi_q", "gradients.dphi_q", BackwardResponseNumber::kDPhiQ,
                             wire::kStreamDPhiQ, BackwardRequestNumber::kDPhiQPlace),
                      low_rank->phi_q.shape, buffers.dphi_q);
    builder.AddFloats(Tensor("dphi_k", "gradients.dphi_k", BackwardResponseNumber::kDPhiK,
                             wire::kStreamDPhiK, BackwardRequestNumber::kDPhiKPlace),
                      low_rank->phi_k.shape, buffers.dphi_k);
  } else {
    builder.CheckNone("gradients.dphi_q", buffers.dphi_q, unwanted);
    builder.CheckNone("gradients.dphi_k", buffers.dphi_k, unwanted);
  }
  if (alibi != nullptr) {
    builder.AddFloats(Tensor("dslopes", "gradients.dslopes", BackwardResponseNumber::kDSlopes,
                             wire::kStreamDSlopes, 0),
                      ShapeOfSlopes(*alibi, forward.q.shape[1]), buffers.dslopes);
  } else {
    builder.CheckNone("gradients.dslopes", buffers.dslopes, unwanted);
  }
  return builder.Take();
}

absl::Status CheckAnswer(const Answer& expected, const AnswerFields& fields, bool data_follows) {
  for (size_t n = 0; n < expected.tensors.size(); ++n) {
    absl::Status status = CheckTensor(expected.tensors[n], fields.tensors[n], data_follows);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

AttendResult TakeResult(Answer answer) {
  AnswerTensor o = Take(wire::kStreamO, &answer);
  return {.dtype = o.dtype,
          .shape = std::move(o.shape),
          .o = std::move(o.own_bytes),
          .lse = Take(wire::kStreamLse, &answer).own_floats,
          .timing = answer.timing};
}

AttendGradients TakeGradients(Answer answer) {
  AnswerTensor dq = Take(wire::kStreamDQ, &answer);
  return {.dtype = dq.dtype,
          .dq = std::move(dq.own_bytes),
          .dk = Take(wire::kStreamDK, &answer).own_bytes,
          .dv = Take(wire::kStreamDV, &answer).own_bytes,
          .dslopes = Take(wire::kStreamDSlopes, &answer).own_floats,
          .dphi_q = Take(wire::kStreamDPhiQ, &answer).own_floats,
          .dphi_k = Take(wire::kStreamDPhiK, &answer).own_floats,
          .timing = answer.timing};
}

}  // namespace flashbias::client
