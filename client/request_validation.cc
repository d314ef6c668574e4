#include "client/request_validation.h"

#include <cmath>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace flashbias::client {
namespace {

constexpr int64_t kInt64Max = std::numeric_limits<int64_t>::max();

std::string Format(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

bool IsDType(DType dtype) {
  return dtype == DType::kFloat16 || dtype == DType::kBFloat16 || dtype == DType::kFloat32;
}

absl::Status CheckTensor(const char* name, const char* layout, const TensorView& tensor) {
  if (!IsDType(tensor.dtype)) {
    return Invalid(name, ".dtype is ", static_cast<int>(tensor.dtype),
                   "; accepted: float16, bfloat16, float32");
  }
  if (tensor.shape.size() != 3) {
    return Invalid(name, ".shape is ", Format(tensor.shape), "; accepted: 3 extents, ", layout);
  }
  // Zero extents do not excuse the others: their product could still overflow elsewhere.
  int64_t elements = 1;
  for (const int64_t extent : tensor.shape) {
    if (extent < 0) {
      return Invalid(name, ".shape is ", Format(tensor.shape), "; accepted: no negative extents");
    }
    if (extent == 0) continue;
    if (elements > kMaxElements / extent) {
      return Invalid(name, ".shape is ", Format(tensor.shape),
                     "; accepted: products of up to 2^62 elements");
    }
    elements *= extent;
  }
  if (tensor.data == nullptr && SaturatedBytes(tensor.dtype, tensor.shape) > 0) {
    return Invalid(name, ".data is null; accepted: ", SaturatedBytes(tensor.dtype, tensor.shape),
                   " bytes for shape ", Format(tensor.shape), " of ", Name(tensor.dtype));
  }
  return absl::OkStatus();
}

absl::Status CheckQkv(const AttendRequest& r) {
  if (auto s = CheckTensor("q", "[total_q, num_q_heads, head_dim]", r.q); !s.ok()) return s;
  if (auto s = CheckTensor("k", "[total_kv, num_kv_heads, head_dim]", r.k); !s.ok()) return s;
  if (auto s = CheckTensor("v", "[total_kv, num_kv_heads, head_dim]", r.v); !s.ok()) return s;
  if (r.k.dtype != r.q.dtype) {
    return Invalid("k.dtype is ", Name(r.k.dtype), "; accepted: that of q, ", Name(r.q.dtype));
  }
  if (r.v.dtype != r.q.dtype) {
    return Invalid("v.dtype is ", Name(r.v.dtype), "; accepted: that of q, ", Name(r.q.dtype));
  }
  const int64_t q_heads = r.q.shape[1];
  const int64_t kv_heads = r.k.shape[1];
  const int64_t head_dim = r.q.shape[2];
  if (head_dim < 1 || head_dim > kMaxHeadDim) {
    return Invalid("head_dim, the last extent of q.shape, is ", head_dim, "; accepted: 1 to ",
                   kMaxHeadDim);
  }
  // num_kv_heads divides num_q_heads, so it needs no upper limit of its own.
  if (q_heads < 1 || q_heads > kMaxHeads) {
    return Invalid("num_q_heads, q.shape[1], is ", q_heads, "; accepted: 1 to ", kMaxHeads);
  }
  if (kv_heads < 1) return Invalid("num_kv_heads, k.shape[1], is 0; accepted: at least 1");
  if (q_heads % kv_heads != 0) {
    return Invalid("num_q_heads, q.shape[1], is ", q_heads,
                   "; accepted: multiples of num_kv_heads, ", kv_heads);
  }
  if (r.k.shape[2] != head_dim) {
    return Invalid("k.shape is ", Format(r.k.shape), "; accepted: the head_dim of q, ", head_dim,
                   ", as the last extent");
  }
  if (r.v.shape != r.k.shape) {
    return Invalid("v.shape is ", Format(r.v.shape), "; accepted: that of k, ", Format(r.k.shape));
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const char* name, const std::vector<int64_t>& lens,
                          const char* total_name, int64_t total) {
  int64_t sum = 0;
  for (size_t n = 0; n < lens.size(); ++n) {
    if (lens[n] < 0) {
      return Invalid(name, "[", n, "] is ", lens[n], "; accepted: 0 and above");
    }
    sum = SaturatingAdd(sum, lens[n]);
  }
  if (sum != total) {
    return Invalid("the sum of ", name, " is ", sum, "; accepted: ", total_name, ", ", total);
  }
  return absl::OkStatus();
}

absl::Status CheckSequences(const AttendRequest& r) {
  if (r.q_lens.size() != r.kv_lens.size()) {
    return Invalid("q_lens has ", r.q_lens.size(), " entries and kv_lens ", r.kv_lens.size(),
                   "; accepted: the same count");
  }
  if (r.q_lens.empty()) return absl::OkStatus();
  if (r.q_lens.size() > static_cast<size_t>(kMaxSequences)) {
    return Invalid("q_lens has ", r.q_lens.size(), " entries; accepted: up to ", kMaxSequences);
  }
  if (auto s = CheckLengths("q_lens", r.q_lens, "q.shape[0]", r.q.shape[0]); !s.ok()) return s;
  return CheckLengths("kv_lens", r.kv_lens, "k.shape[0]", r.k.shape[0]);
}

absl::Status CheckPositions(const char* name, const std::vector<int64_t>& starts,
                            int64_t num_sequences) {
  if (starts.empty()) return absl::OkStatus();
  if (static_cast<int64_t>(starts.size()) != num_sequences) {
    return Invalid(name, " has ", starts.size(), " entries; accepted: none, or one per sequence, ",
                   num_sequences);
  }
  for (size_t n = 0; n < starts.size(); ++n) {
    if (starts[n] > kMaxPosition || starts[n] < -kMaxPosition) {
      return Invalid(name, "[", n, "] is ", starts[n], "; accepted: -2^48 to 2^48");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckScalars(const AttendRequest& r) {
  if (r.mask != MaskKind::kCausal && r.mask != MaskKind::kFull) {
    return Invalid("mask is ", r.mask == MaskKind::kUnspecified ? "unspecified" : "unknown",
                   "; accepted: causal, full");
  }
  if (r.left_window < 0) {
    return Invalid("left_window is ", r.left_window, "; accepted: 0 (none) and above");
  }
  if (r.softmax_scale.has_value() && !std::isfinite(*r.softmax_scale)) {
    return Invalid("softmax_scale is ", *r.softmax_scale, "; accepted: finite numbers");
  }
  if (r.eps.has_value() && !(*r.eps >= 0.0f && *r.eps <= kMaxEps)) {
    return Invalid("eps is ", *r.eps, "; accepted: 0 to 2^-8");
  }
  return absl::OkStatus();
}

absl::Status CheckSlopes(absl::Span<const float> slopes, int64_t q_heads, int64_t num_sequences) {
  const auto count = static_cast<int64_t>(slopes.size());
  // Not num_sequences * q_heads: the product of two large counts could overflow.
  if (count != q_heads && !(count % num_sequences == 0 && count / num_sequences == q_heads)) {
    return Invalid("alibi.slopes has ", count, " entries; accepted: num_q_heads, ", q_heads,
                   ", or that for each of the ", num_sequences, " sequences");
  }
  for (int64_t n = 0; n < count; ++n) {
    if (!std::isfinite(slopes[n])) {
      return Invalid("alibi.slopes[", n, "] is ", slopes[n], "; accepted: finite numbers");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckFactor(const char* name, const TensorView& factor, const char* total_name,
                         int64_t total, int64_t q_heads) {
  if (factor.shape[0] != total) {
    return Invalid(name, ".shape is ", Format(factor.shape), "; accepted: ", total_name, ", ",
                   total, ", as the first extent");
  }
  if (factor.shape[1] != q_heads && factor.shape[1] != 1) {
    return Invalid(name, ".shape is ", Format(factor.shape), "; accepted: num_q_heads, ", q_heads,
                   ", or 1 as the second extent");
  }
  if (factor.shape[2] < 1 || factor.shape[2] > kMaxRank) {
    return Invalid(name, ".shape is ", Format(factor.shape), "; accepted: a rank of 1 to ",
                   kMaxRank, " as the last extent");
  }
  return absl::OkStatus();
}

absl::Status CheckFactors(const LowRankFactors& f, const AttendRequest& r) {
  const char* q_name = "low_rank.phi_q";
  const char* k_name = "low_rank.phi_k";
  if (auto s = CheckTensor(q_name, "[total_q, num_q_heads or 1, R]", f.phi_q); !s.ok()) return s;
  if (auto s = CheckTensor(k_name, "[total_kv, num_q_heads or 1, R]", f.phi_k); !s.ok()) return s;
  if (f.phi_k.dtype != f.phi_q.dtype) {
    return Invalid(k_name, ".dtype is ", Name(f.phi_k.dtype), "; accepted: that of ", q_name, ", ",
                   Name(f.phi_q.dtype));
  }
  const int64_t q_heads = r.q.shape[1];
  if (auto s = CheckFactor(q_name, f.phi_q, "q.shape[0]", r.q.shape[0], q_heads); !s.ok()) return s;
  if (auto s = CheckFactor(k_name, f.phi_k, "k.shape[0]", r.k.shape[0], q_heads); !s.ok()) return s;
  if (f.phi_k.shape[2] != f.phi_q.shape[2]) {
    return Invalid(k_name, ".shape is ", Format(f.phi_k.shape), "; accepted: the rank of ", q_name,
                   ", ", f.phi_q.shape[2], ", as the last extent");
  }
  return absl::OkStatus();
}

absl::Status CheckLikeQ(const char* name, const TensorView& tensor, const TensorView& q) {
  if (auto s = CheckTensor(name, "[total_q, num_q_heads, head_dim]", tensor); !s.ok()) return s;
  if (tensor.dtype != q.dtype) {
    return Invalid(name, ".dtype is ", Name(tensor.dtype), "; accepted: that of q, ",
                   Name(q.dtype));
  }
  if (tensor.shape != q.shape) {
    return Invalid(name, ".shape is ", Format(tensor.shape), "; accepted: that of q, ",
                   Format(q.shape));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RequestSummary> SummarizeRequest(const AttendRequest& request) {
  if (auto s = CheckQkv(request); !s.ok()) return s;
  if (auto s = CheckSequences(request); !s.ok()) return s;
  if (auto s = CheckScalars(request); !s.ok()) return s;
  RequestSummary summary{
      .dtype = request.q.dtype,
      .total_q = request.q.shape[0],
      .total_kv = request.k.shape[0],
      .num_q_heads = request.q.shape[1],
      .num_kv_heads = request.k.shape[1],
      .head_dim = request.q.shape[2],
      .num_sequences = request.q_lens.empty() ? 1 : static_cast<int64_t>(request.q_lens.size()),
      .want_lse = request.want_lse};
  for (const auto& [name, starts] : {std::pair{"query_start", &request.query_start},
                                     std::pair{"key_start", &request.key_start}}) {
    if (auto s = CheckPositions(name, *starts, summary.num_sequences); !s.ok()) return s;
  }

  const int64_t q_bytes = SaturatedBytes(request.q.dtype, request.q.shape);
  summary.request_bytes =
      SaturatingAdd(q_bytes, SaturatingAdd(SaturatedBytes(request.k.dtype, request.k.shape),
                                           SaturatedBytes(request.v.dtype, request.v.shape)));
  if (const auto* alibi = std::get_if<AlibiSlopes>(&request.bias)) {
    if (auto s = CheckSlopes(alibi->slopes, summary.num_q_heads, summary.num_sequences); !s.ok()) {
      return s;
    }
    summary.request_bytes = SaturatingAdd(
        summary.request_bytes, static_cast<int64_t>(alibi->slopes.size() * sizeof(float)));
  } else if (const auto* low_rank = std::get_if<LowRankFactors>(&request.bias)) {
    if (auto s = CheckFactors(*low_rank, request); !s.ok()) return s;
    for (const TensorView* factor : {&low_rank->phi_q, &low_rank->phi_k}) {
      summary.request_bytes =
          SaturatingAdd(summary.request_bytes, SaturatedBytes(factor->dtype, factor->shape));
    }
  }
  summary.response_bytes = q_bytes;
  if (request.want_lse) {
    summary.response_bytes = SaturatingAdd(
        q_bytes, SaturatedBytes(DType::kFloat32, {summary.total_q, summary.num_q_heads}));
  }
  return summary;
}

absl::StatusOr<RequestSummary> SummarizeRequest(const AttendBackwardRequest& request) {
  const AttendRequest& forward = request.forward;
  absl::StatusOr<RequestSummary> summary = SummarizeRequest(forward);
  if (!summary.ok()) return summary;
  if (auto s = CheckLikeQ("o", request.o, forward.q); !s.ok()) return s;
  if (auto s = CheckLikeQ("d_o", request.d_o, forward.q); !s.ok()) return s;
  const int64_t lse_bytes =
      SaturatedBytes(DType::kFloat32, {summary->total_q, summary->num_q_heads});
  const auto lse_values = lse_bytes / static_cast<int64_t>(sizeof(float));
  if (static_cast<int64_t>(request.lse.size()) != lse_values) {
    return Invalid("lse has ", request.lse.size(), " values; accepted: ", lse_values,
                   ", one for each query and head");
  }
  if (request.want_bias_gradient && std::holds_alternative<std::monostate>(forward.bias)) {
    return Invalid("want_bias_gradient is true without a bias; accepted: with slopes or factors");
  }
  const int64_t q_bytes = SaturatedBytes(forward.q.dtype, forward.q.shape);
  for (const int64_t bytes : {q_bytes, q_bytes, lse_bytes}) {
    summary->request_bytes = SaturatingAdd(summary->request_bytes, bytes);
  }
  summary->want_lse = false;
  summary->response_bytes = q_bytes;
  for (const TensorView* tensor : {&forward.k, &forward.v}) {
    summary->response_bytes =
        SaturatingAdd(summary->response_bytes, SaturatedBytes(tensor->dtype, tensor->shape));
  }
  if (!request.want_bias_gradient) return summary;
  if (const auto* alibi = std::get_if<AlibiSlopes>(&forward.bias)) {
    summary->response_bytes = SaturatingAdd(
        summary->response_bytes, static_cast<int64_t>(alibi->slopes.size() * sizeof(float)));
  } else if (const auto* low_rank = std::get_if<LowRankFactors>(&forward.bias)) {
    for (const TensorView* factor : {&low_rank->phi_q, &low_rank->phi_k}) {
      summary->response_bytes =
          SaturatingAdd(summary->response_bytes, SaturatedBytes(DType::kFloat32, factor->shape));
    }
  }
  return summary;
}

std::vector<int64_t> ShapeOfSlopes(const AlibiSlopes& alibi, int64_t num_q_heads) {
  const auto count = static_cast<int64_t>(alibi.slopes.size());
  if (count == num_q_heads) return {count};
  return {count / num_q_heads, num_q_heads};
}

int64_t SaturatingAdd(int64_t a, int64_t b) { return a > kInt64Max - b ? kInt64Max : a + b; }

int64_t SaturatedBytes(DType dtype, const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t extent : shape) {
    if (extent == 0) return 0;
    elements = elements > kInt64Max / extent ? kInt64Max : elements * extent;
  }
  const auto size = static_cast<int64_t>(SizeOf(dtype));
  return elements > kInt64Max / size ? kInt64Max : elements * size;
}

}  // namespace flashbias::client
