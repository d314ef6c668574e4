#include "client/examples/train_alibi_layer/remote_attention.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace flashbias::examples {
namespace {

using client::AttendBackwardRequest;
using client::AttendGradients;
using client::AttendRequest;
using client::AttendResult;
using client::TensorView;

// A tensor's bytes and its shape, [n, num_heads, head_dim].
struct Encoded {
  TensorView View() const { return {.dtype = dtype, .shape = shape, .data = bytes.data()}; }

  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape = {};
  std::string bytes = {};
};

absl::StatusOr<Encoded> Encode(const char* name, const Matrix& matrix, int num_heads, DType dtype) {
  Encoded encoded{.dtype = dtype,
                  .shape = {matrix.rows(), num_heads, matrix.cols() / num_heads},
                  .bytes = std::string(matrix.size() * SizeOf(dtype), '\0')};
  for (int64_t n = 0; n < matrix.size(); ++n) {
    const float value = matrix.data()[n];
    StoreElement(dtype, encoded.bytes.data(), n, value);
    if (std::isfinite(value) && std::isinf(LoadElement(dtype, encoded.bytes.data(), n))) {
      return absl::OutOfRangeError(
          absl::StrCat(name, " holds ", value, ", which is infinite as ", Name(dtype)));
    }
  }
  return encoded;
}

Matrix Decode(const std::string& bytes, int64_t rows, int64_t cols, DType dtype) {
  Matrix matrix(rows, cols);
  for (int64_t n = 0; n < matrix.size(); ++n) {
    matrix.data()[n] = LoadElement(dtype, bytes.data(), n);
  }
  return matrix;
}

// q, k and v as they are sent, and the request that refers to them and to the input's slopes.
struct EncodedInput {
  AttendRequest Request(const AttentionInput& input) const {
    return {.q = q.View(),
            .k = k.View(),
            .v = v.View(),
            .mask = client::MaskKind::kCausal,
            .want_lse = true,
            .bias = client::AlibiSlopes{.slopes = input.slopes}};
  }

  Encoded q, k, v;
};

absl::StatusOr<EncodedInput> EncodeInput(const AttentionInput& input, DType dtype) {
  EncodedInput encoded;
  for (const auto& [name, matrix, to] :
       {std::tuple{"q", &input.q, &encoded.q}, std::tuple{"k", &input.k, &encoded.k},
        std::tuple{"v", &input.v, &encoded.v}}) {
    absl::StatusOr<Encoded> tensor = Encode(name, *matrix, input.num_heads, dtype);
    if (!tensor.ok()) return tensor.status();
    *to = *std::move(tensor);
  }
  return encoded;
}

// The power of two that brings the largest element to 1 .. 2; 1 where all are zero or one is not
// finite.
float ScaleOf(const Matrix& d_o) {
  const float largest = d_o.size() == 0 ? 0 : d_o.cwiseAbs().maxCoeff();
  if (!d_o.allFinite() || largest == 0) return 1;
  return std::ldexp(1.0f, std::clamp(-std::ilogb(largest), -100, 100));
}

}  // namespace

absl::StatusOr<AttentionOutput> RemoteAttention::Forward(const AttentionInput& input) {
  const absl::StatusOr<EncodedInput> encoded = EncodeInput(input, dtype_);
  if (!encoded.ok()) return encoded.status();
  const absl::Time start = absl::Now();
  absl::StatusOr<AttendResult> result =
      client_->Attend(encoded->Request(input), {.timeout = timeout_});
  time_in_calls_ += absl::Now() - start;
  if (!result.ok()) return result.status();
  return AttentionOutput{.o = Decode(result->o, input.q.rows(), input.q.cols(), dtype_),
                         .lse = std::move(result->lse)};
}

absl::StatusOr<AttentionGradients> RemoteAttention::Backward(const AttentionInput& input,
                                                             const AttentionOutput& output,
                                                             const Matrix& d_o, bool want_dslopes) {
  const absl::StatusOr<EncodedInput> encoded = EncodeInput(input, dtype_);
  if (!encoded.ok()) return encoded.status();
  // Exactly what came: o holds values of the wire's dtype.
  const absl::StatusOr<Encoded> o = Encode("o", output.o, input.num_heads, dtype_);
  if (!o.ok()) return o.status();
  const float scale = ScaleOf(d_o);
  const absl::StatusOr<Encoded> scaled_d_o = Encode("d_o", scale * d_o, input.num_heads, dtype_);
  if (!scaled_d_o.ok()) return scaled_d_o.status();

  const AttendBackwardRequest request{.forward = encoded->Request(input),
                                      .o = o->View(),
                                      .lse = output.lse,
                                      .d_o = scaled_d_o->View(),
                                      .want_bias_gradient = want_dslopes};
  const absl::Time start = absl::Now();
  absl::StatusOr<AttendGradients> result = client_->AttendBackward(request, {.timeout = timeout_});
  time_in_calls_ += absl::Now() - start;
  if (!result.ok()) return result.status();

  const int64_t n = input.q.rows();
  const int64_t channels = input.q.cols();
  AttentionGradients gradients{.dq = Decode(result->dq, n, channels, dtype_) / scale,
                               .dk = Decode(result->dk, n, channels, dtype_) / scale,
                               .dv = Decode(result->dv, n, channels, dtype_) / scale,
                               .dslopes = std::move(result->dslopes)};
  for (float& dslope : gradients.dslopes) dslope /= scale;
  return gradients;
}

}  // namespace flashbias::examples
