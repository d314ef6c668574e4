#include "server/attend_validation.h"

#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "wire/contract.h"

namespace flashbias::server {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensor data is little-endian on the wire and used in place");

constexpr int64_t kMaxElements = int64_t{1} << 62;

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

std::string DTypeNames(absl::Span<const DType> dtypes) {
  return absl::StrJoin(dtypes, ", ",
                       [](std::string* out, DType dtype) { out->append(Name(dtype)); });
}

bool Contains(absl::Span<const DType> dtypes, DType dtype) {
  for (const DType other : dtypes) {
    if (other == dtype) return true;
  }
  return false;
}

// Of a tensor that CheckTensor accepted.
int64_t TensorBytes(const wire::TensorField& tensor) {
  auto bytes = static_cast<int64_t>(SizeOf(*wire::DTypeFromWire(tensor.dtype)));
  for (const int64_t extent : tensor.shape) bytes *= extent;
  return bytes;
}

// Presence, dtype, number of extents, and that the data is exactly what shape and dtype say, or
// not there at all where it follows. `layout` names the extents: "[total_q, num_q_heads,
// head_dim]".
absl::StatusOr<DType> CheckTensor(const char* name, const wire::TensorField& tensor,
                                  const char* layout, size_t extents,
                                  absl::Span<const DType> accepted, bool data_follows) {
  if (!tensor.present) {
    return Invalid(name, " is missing; accepted: a tensor of shape ", layout);
  }
  const std::optional<DType> dtype = wire::DTypeFromWire(tensor.dtype);
  if (!dtype.has_value() || !Contains(accepted, *dtype)) {
    std::string came = "unspecified";
    if (dtype.has_value()) {
      came = Name(*dtype);
    } else if (tensor.dtype != 0) {
      came = absl::StrCat(tensor.dtype, ", which is no dtype of the contract");
    }
    return Invalid(name, ".dtype is ", came, "; accepted: ", DTypeNames(accepted));
  }
  if (tensor.shape.size() != extents) {
    return Invalid(name, ".shape has ", tensor.shape.size(), " extents; accepted: ", layout);
  }
  // Negative extents first, so that no order of extents lets one hide behind a zero.
  for (const int64_t extent : tensor.shape) {
    if (extent < 0) {
      return Invalid(name, ".shape is ", ShapeText(tensor.shape),
                     "; accepted: extents of 0 or more");
    }
  }
  int64_t bytes = static_cast<int64_t>(SizeOf(*dtype));
  for (const int64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes) || bytes > kMaxElements) {
      return Invalid(name, ".shape is ", ShapeText(tensor.shape), "; accepted: at most 2^62 bytes");
    }
  }
  if (data_follows) {
    if (tensor.place.region_id != 0 || tensor.place.offset != 0) {
      const bool id = tensor.place.region_id != 0;
      return Invalid(
          name, id ? ".region_id is " : ".region_offset is ",
          id ? absl::StrCat(absl::Hex(tensor.place.region_id)) : absl::StrCat(tensor.place.offset),
          "; accepted: 0 in the header of a stream, whose tensors come in chunks");
    }
    if (tensor.data.size == 0) return *dtype;
    return Invalid(name, ".data has ", tensor.data.size,
                   " bytes; accepted: none in the header of a stream");
  }
  if (tensor.place.region_id != 0) {
    if (tensor.data.size != 0) {
      return Invalid(name, ".data has ", tensor.data.size, " bytes beside ", name,
                     ".region_id; accepted: one of the two");
    }
    if (bytes > kMaxRegionTensorBytes) {
      return Invalid(name, ".shape is ", ShapeText(tensor.shape),
                     "; accepted: at most 2^48 bytes in a region");
    }
    return *dtype;
  }
  if (tensor.place.offset != 0) {
    return Invalid(name, ".region_offset is ", tensor.place.offset, " without ", name,
                   ".region_id; accepted: both or none");
  }
  if (tensor.data.size != static_cast<uint64_t>(bytes)) {
    return Invalid(name, ".data has ", tensor.data.size, " bytes; accepted: ", bytes, ", what ",
                   name, ".shape ", ShapeText(tensor.shape), " of ", Name(*dtype), " takes");
  }
  return *dtype;
}

absl::Status CheckQkv(const AttendFields& fields, const AttendLimits& limits,
                      AttentionProblem* problem) {
  struct Operand {
    const char* name;
    const wire::TensorField& tensor;
    const char* layout;
  };
  constexpr const char* kQLayout = "[total_q, num_q_heads, head_dim]";
  constexpr const char* kKvLayout = "[total_kv, num_kv_heads, head_dim]";
  const Operand operands[] = {
      {"q", fields.q, kQLayout}, {"k", fields.k, kKvLayout}, {"v", fields.v, kKvLayout}};
  std::optional<DType> first;
  for (const Operand& operand : operands) {
    const absl::StatusOr<DType> dtype = CheckTensor(operand.name, operand.tensor, operand.layout, 3,
                                                    limits.dtypes, fields.data_follows);
    if (!dtype.ok()) return dtype.status();
    if (first.has_value() && *dtype != *first) {
      return Invalid(operand.name, ".dtype is ", Name(*dtype), "; accepted: that of q, ",
                     Name(*first));
    }
    first = *dtype;
  }

  const int64_t num_q_heads = fields.q.shape[1];
  const int64_t num_kv_heads = fields.k.shape[1];
  const int64_t head_dim = fields.q.shape[2];
  if (num_q_heads < 1 || num_q_heads > kMaxHeads) {
    return Invalid("q.shape is ", ShapeText(fields.q.shape), ": num_q_heads is ", num_q_heads,
                   "; accepted: 1 to ", kMaxHeads);
  }
  if (head_dim < 1 || head_dim > limits.max_head_dim) {
    return Invalid("q.shape is ", ShapeText(fields.q.shape), ": head_dim is ", head_dim,
                   "; accepted: 1 to ", limits.max_head_dim);
  }
  if (fields.k.shape[2] != head_dim) {
    return Invalid("k.shape is ", ShapeText(fields.k.shape), ": head_dim is ", fields.k.shape[2],
                   "; accepted: that of q, ", head_dim);
  }
  if (num_kv_heads < 1 || num_q_heads % num_kv_heads != 0) {
    return Invalid("k.shape is ", ShapeText(fields.k.shape), ": num_kv_heads is ", num_kv_heads,
                   "; accepted: a positive divisor of num_q_heads ", num_q_heads);
  }
  if (fields.v.shape != fields.k.shape) {
    return Invalid("v.shape is ", ShapeText(fields.v.shape), "; accepted: that of k, ",
                   ShapeText(fields.k.shape));
  }
  problem->dtype = *first;
  problem->num_q_heads = static_cast<int>(num_q_heads);
  problem->num_kv_heads = static_cast<int>(num_kv_heads);
  problem->head_dim = static_cast<int>(head_dim);
  problem->total_q = fields.q.shape[0];
  problem->total_kv = fields.k.shape[0];
  return absl::OkStatus();
}

// Entries not negative, sum equal to `total`.
absl::Status CheckLens(const char* name, absl::Span<const int64_t> lens, const char* total_name,
                       int64_t total, int64_t max) {
  int64_t sum = 0;
  for (size_t n = 0; n < lens.size(); ++n) {
    if (lens[n] < 0) {
      return Invalid(name, "[", n, "] is ", lens[n], "; accepted: 0 or more");
    }
    if (lens[n] > max) {
      return Invalid("a sequence has ", lens[n], " rows (", name, "[", n,
                     "]); accepted by this server's backend: at most ", max);
    }
    if (__builtin_add_overflow(sum, lens[n], &sum)) {
      return Invalid(name, " sums to more than 2^63; accepted: ", total_name, " ", total);
    }
  }
  if (sum != total) {
    return Invalid(name, " sums to ", sum, "; accepted: ", total_name, " ", total);
  }
  return absl::OkStatus();
}

absl::Status CheckStarts(const char* name, absl::Span<const int64_t> starts, size_t sequences) {
  if (!starts.empty() && starts.size() != sequences) {
    return Invalid(name, " has ", starts.size(),
                   " entries; accepted: none, or one for each of the ", sequences, " sequences");
  }
  for (size_t n = 0; n < starts.size(); ++n) {
    if (starts[n] > kMaxPosition || starts[n] < -kMaxPosition) {
      return Invalid(name, "[", n, "] is ", starts[n], "; accepted: -2^48 to 2^48");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSequences(const AttendFields& fields, const AttendLimits& limits,
                            const AttentionProblem& problem, std::vector<Sequence>* sequences) {
  if (fields.q_lens.size() != fields.kv_lens.size()) {
    return Invalid("kv_lens has ", fields.kv_lens.size(), " entries and q_lens has ",
                   fields.q_lens.size(), "; accepted: as many in both");
  }
  if (fields.q_lens.size() > static_cast<uint64_t>(limits.max_sequences)) {
    return Invalid("q_lens has ", fields.q_lens.size(), " entries; accepted: at most ",
                   limits.max_sequences, " sequences");
  }
  const int64_t whole_q[] = {problem.total_q};
  const int64_t whole_kv[] = {problem.total_kv};
  absl::Span<const int64_t> q_lens = fields.q_lens;
  absl::Span<const int64_t> kv_lens = fields.kv_lens;
  if (q_lens.empty()) {
    q_lens = whole_q;
    kv_lens = whole_kv;
  }
  for (const absl::Status& status :
       {CheckLens("q_lens", q_lens, "total_q", problem.total_q, limits.max_sequence_rows),
        CheckLens("kv_lens", kv_lens, "total_kv", problem.total_kv, limits.max_sequence_rows),
        CheckStarts("query_start", fields.query_start, q_lens.size()),
        CheckStarts("key_start", fields.key_start, q_lens.size())}) {
    if (!status.ok()) return status;
  }

  sequences->reserve(q_lens.size());
  Sequence next;
  for (size_t n = 0; n < q_lens.size(); ++n) {
    next.q_len = q_lens[n];
    next.kv_len = kv_lens[n];
    next.key_start = fields.key_start.empty() ? 0 : fields.key_start[n];
    next.query_start = fields.query_start.empty() ? next.key_start + next.kv_len - next.q_len
                                                  : fields.query_start[n];
    sequences->push_back(next);
    next.q_begin += next.q_len;
    next.kv_begin += next.kv_len;
  }
  return absl::OkStatus();
}

absl::Status CheckScalars(const AttendFields& fields, AttentionProblem* problem) {
  if (fields.mask != wire::kMaskCausal && fields.mask != wire::kMaskFull) {
    const std::string came = fields.mask == 0
                                 ? "unspecified"
                                 : absl::StrCat(fields.mask, ", which is no mask of the contract");
    return Invalid("mask is ", came, "; accepted: MASK_CAUSAL, MASK_FULL");
  }
  if (fields.left_window < 0) {
    return Invalid("left_window is ", fields.left_window,
                   "; accepted: 0 (no window) or a positive number of positions");
  }
  problem->mask = {.causal = fields.mask == wire::kMaskCausal, .left_window = fields.left_window};

  const float default_scale =
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem->head_dim)));
  problem->softmax_scale = fields.softmax_scale.value_or(default_scale);
  if (!std::isfinite(problem->softmax_scale)) {
    return Invalid("softmax_scale is ", problem->softmax_scale, "; accepted: finite values");
  }
  problem->eps = fields.eps.value_or(kDefaultEps);
  if (!(problem->eps >= 0 && problem->eps <= kMaxEps)) {
    return Invalid("eps is ", problem->eps, "; accepted: 0 to 2^-8");
  }
  return absl::OkStatus();
}

absl::Status CheckAlibi(const wire::TensorField& slopes, size_t num_sequences,
                        AttentionProblem* problem) {
  constexpr const char* kName = "alibi.slopes";
  constexpr DType kAccepted[] = {DType::kFloat32};
  const bool per_sequence = slopes.shape.size() == 2;
  const char* layout = "[num_q_heads] or [num_sequences, num_q_heads]";
  const absl::StatusOr<DType> dtype =
      CheckTensor(kName, slopes, layout, per_sequence ? 2 : 1, kAccepted, /*data_follows=*/false);
  if (!dtype.ok()) return dtype.status();
  // Their values are checked, and could change in a region afterwards.
  if (slopes.place.region_id != 0) return Invalid(kName, ".region_id is set; accepted: data");
  if (slopes.shape.back() != problem->num_q_heads ||
      (per_sequence && slopes.shape[0] != static_cast<int64_t>(num_sequences))) {
    return Invalid(kName, ".shape is ", ShapeText(slopes.shape), "; accepted: [",
                   problem->num_q_heads, "] or [", num_sequences, ", ", problem->num_q_heads, "]");
  }
  problem->bias_kind = BiasKind::kAlibi;
  problem->alibi.per_sequence = per_sequence;
  return absl::OkStatus();
}

absl::Status CheckLowRank(const AttendFields& fields, const AttendLimits& limits,
                          AttentionProblem* problem) {
  constexpr DType kAccepted[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
  const absl::StatusOr<DType> q_dtype =
      CheckTensor("low_rank.phi_q", fields.phi_q, "[total_q, num_q_heads or 1, R]", 3, kAccepted,
                  fields.data_follows);
  if (!q_dtype.ok()) return q_dtype.status();
  const absl::StatusOr<DType> k_dtype =
      CheckTensor("low_rank.phi_k", fields.phi_k, "[total_kv, num_q_heads or 1, R]", 3, kAccepted,
                  fields.data_follows);
  if (!k_dtype.ok()) return k_dtype.status();
  if (*k_dtype != *q_dtype) {
    return Invalid("low_rank.phi_k.dtype is ", Name(*k_dtype), "; accepted: that of phi_q, ",
                   Name(*q_dtype));
  }

  const int64_t rank = fields.phi_q.shape[2];
  if (rank < 1 || rank > limits.max_rank) {
    return Invalid("low_rank.phi_q.shape is ", ShapeText(fields.phi_q.shape), ": the rank is ",
                   rank, "; accepted: 1 to ", limits.max_rank);
  }
  if (fields.phi_k.shape[2] != rank) {
    return Invalid("low_rank.phi_k.shape is ", ShapeText(fields.phi_k.shape), ": the rank is ",
                   fields.phi_k.shape[2], "; accepted: that of phi_q, ", rank);
  }
  const auto check_rows = [&](const char* name, const wire::TensorField& phi,
                              int64_t rows) -> absl::Status {
    const bool heads_ok = phi.shape[1] == 1 || phi.shape[1] == problem->num_q_heads;
    if (phi.shape[0] == rows && heads_ok) return absl::OkStatus();
    return Invalid(name, ".shape is ", ShapeText(phi.shape), "; accepted: [", rows, ", ",
                   problem->num_q_heads, " or 1, ", rank, "]");
  };
  for (const absl::Status& status :
       {check_rows("low_rank.phi_q", fields.phi_q, problem->total_q),
        check_rows("low_rank.phi_k", fields.phi_k, problem->total_kv)}) {
    if (!status.ok()) return status;
  }

  problem->bias_kind = BiasKind::kLowRank;
  problem->low_rank = {.dtype = *q_dtype,
                       .rank = static_cast<int>(rank),
                       .phi_q_heads = static_cast<int>(fields.phi_q.shape[1]),
                       .phi_k_heads = static_cast<int>(fields.phi_k.shape[1])};
  return absl::OkStatus();
}

// The answer of a stream comes in chunks.
absl::Status CheckNoPlaces(const AttendFields& fields) {
  for (const auto& [name, place] :
       {std::pair{"o_place", fields.o_place}, std::pair{"lse_place", fields.lse_place}}) {
    if (place.has_value()) {
      return Invalid(
          name, " is set; accepted: none in the header of a stream, whose answer comes in chunks");
    }
  }
  return absl::OkStatus();
}

// Before a sum of sizes that nobody sent yet is made, or a product of the counts behind them.
absl::Status CheckStreamBytes(const AttendFields& fields, const ValidatedAttend& valid,
                              const AttendLimits& limits) {
  const int64_t limit = limits.max_stream_bytes;
  const auto too_much = [&](const char* what, int64_t bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        what, " would take ", bytes, " bytes; the limit is ", limit, " bytes a stream"));
  };
  for (const auto& [name, bytes] : {std::pair{"q", valid.q_bytes}, std::pair{"k", valid.kv_bytes},
                                    std::pair{"low_rank.phi_q", valid.phi_q_bytes},
                                    std::pair{"low_rank.phi_k", valid.phi_k_bytes}}) {
    if (bytes > limit) return too_much(name, bytes);
  }
  const int64_t lse = fields.want_lse ? valid.problem.total_q * valid.problem.num_q_heads *
                                            static_cast<int64_t>(sizeof(float))
                                      : 0;
  const int64_t all =
      2 * valid.q_bytes + 2 * valid.kv_bytes + valid.phi_q_bytes + valid.phi_k_bytes + lse;
  if (all > limit) return too_much("q, k, v, the factors, o and lse", all);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ValidatedAttend> ValidateAttend(const AttendFields& fields,
                                               const AttendLimits& limits) {
  ValidatedAttend valid;
  AttentionProblem& problem = valid.problem;
  absl::Status status = CheckQkv(fields, limits, &problem);
  if (status.ok()) status = CheckScalars(fields, &problem);
  if (status.ok()) status = CheckSequences(fields, limits, problem, &valid.sequences);
  if (status.ok() && fields.bias == WireBias::kAlibi) {
    status = CheckAlibi(fields.slopes, valid.sequences.size(), &problem);
    valid.num_slopes = static_cast<int64_t>(fields.slopes.data.size / sizeof(float));
  }
  if (status.ok() && fields.bias == WireBias::kLowRank) {
    status = CheckLowRank(fields, limits, &problem);
  }
  if (!status.ok()) return status;
  valid.q_bytes = TensorBytes(fields.q);
  valid.kv_bytes = TensorBytes(fields.k);
  if (problem.bias_kind == BiasKind::kLowRank) {
    valid.phi_q_bytes = TensorBytes(fields.phi_q);
    valid.phi_k_bytes = TensorBytes(fields.phi_k);
  }
  if (fields.data_follows) {
    status = CheckNoPlaces(fields);
    if (!status.ok()) return status;
    if (status = CheckStreamBytes(fields, valid, limits); !status.ok()) return status;
  }

  // o has the size of q, which came over the wire or is bounded, and lse has at most 4 bytes for
  // every element of q: neither product can overflow.
  valid.o_bytes = valid.q_bytes;
  if (fields.want_lse) {
    valid.lse_bytes = problem.total_q * problem.num_q_heads * static_cast<int64_t>(sizeof(float));
  }
  const int64_t response_bytes = (fields.o_place.has_value() ? 0 : valid.o_bytes) +
                                 (fields.lse_place.has_value() ? 0 : valid.lse_bytes) +
                                 kResponseOverheadBytes;
  if (!fields.data_follows && response_bytes > limits.max_message_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the response would take up to ", response_bytes, " bytes (o ", valid.o_bytes, ", lse ",
        valid.lse_bytes, "); the limit is ", limits.max_message_bytes, " bytes a message"));
  }
  return valid;
}

absl::Status CheckSlopes(absl::Span<const float> slopes) {
  for (size_t n = 0; n < slopes.size(); ++n) {
    if (!std::isfinite(slopes[n])) {
      return Invalid("alibi.slopes.data[", n, "] is ", slopes[n], "; accepted: finite values");
    }
  }
  return absl::OkStatus();
}

}  // namespace flashbias::server
