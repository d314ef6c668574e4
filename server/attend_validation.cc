#include "server/attend_validation.h"

#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
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

// A tensor that has shape and dtype of q.
absl::Status CheckLikeQ(const char* name, const wire::TensorField& tensor,
                        const AttendFields& fields, const AttendLimits& limits) {
  const absl::StatusOr<DType> dtype =
      CheckTensor(name, tensor, "[total_q, num_q_heads, head_dim]", fields.q.shape.size(),
                  limits.dtypes, fields.data_follows);
  if (!dtype.ok()) return dtype.status();
  if (tensor.dtype != fields.q.dtype) {
    return Invalid(name, ".dtype is ", Name(*dtype), "; accepted: that of q, ",
                   Name(*wire::DTypeFromWire(fields.q.dtype)));
  }
  if (tensor.shape != fields.q.shape) {
    return Invalid(name, ".shape is ", ShapeText(tensor.shape), "; accepted: that of q, ",
                   ShapeText(fields.q.shape));
  }
  return absl::OkStatus();
}

// What came beside the forward request, once that was checked.
absl::Status CheckBackward(const AttendFields& fields, const AttendLimits& limits,
                           AttentionProblem* problem) {
  problem->direction = Direction::kBackward;
  const BackwardFields& backward = *fields.backward;
  if (fields.want_lse) {
    return Invalid("want_lse is set; accepted: not with gradients, which take the lse as it was");
  }
  for (const auto& [name, place] :
       {std::pair{"o_place", fields.o_place}, std::pair{"lse_place", fields.lse_place}}) {
    if (place.has_value()) {
      return Invalid(name, " is set; accepted: places of gradients: dq_place, dk_place, dv_place");
    }
  }
  if (backward.want_bias_gradient && fields.bias == WireBias::kNone) {
    return Invalid("want_bias_gradient is set without a bias; accepted: with alibi or low_rank");
  }
  constexpr DType kFloat[] = {DType::kFloat32};
  const absl::StatusOr<DType> lse =
      CheckTensor("lse", backward.lse, "[total_q, num_q_heads]", 2, kFloat, fields.data_follows);
  if (!lse.ok()) return lse.status();
  if (backward.lse.shape[0] != problem->total_q || backward.lse.shape[1] != problem->num_q_heads) {
    return Invalid("lse.shape is ", ShapeText(backward.lse.shape), "; accepted: [",
                   problem->total_q, ", ", problem->num_q_heads, "]");
  }
  absl::Status like = CheckLikeQ("o", backward.o, fields, limits);
  if (like.ok()) like = CheckLikeQ("d_o", backward.d_o, fields, limits);
  return like;
}

InputTensor Input(TensorSet tensor, const char* name, int stream_number,
                  const wire::TensorField& field) {
  InputTensor input;
  input.tensor = tensor;
  input.name = name;
  input.stream_number = stream_number;
  input.dtype = *wire::DTypeFromWire(field.dtype);
  input.bytes = TensorBytes(field);
  input.data = field.data;
  input.place = field.place;
  return input;
}

// REQUIRES: all tensors were checked.
std::vector<InputTensor> InputsOf(const AttendFields& fields) {
  std::vector<InputTensor> inputs = {Input(kTensorQ, "q", wire::kStreamQ, fields.q),
                                     Input(kTensorK, "k", wire::kStreamK, fields.k),
                                     Input(kTensorV, "v", wire::kStreamV, fields.v)};
  if (fields.bias == WireBias::kLowRank) {
    inputs.push_back(Input(kTensorPhiQ, "low_rank.phi_q", wire::kStreamPhiQ, fields.phi_q));
    inputs.push_back(Input(kTensorPhiK, "low_rank.phi_k", wire::kStreamPhiK, fields.phi_k));
  }
  if (fields.backward.has_value()) {
    inputs.push_back(Input(kTensorLse, "lse", wire::kStreamLse, fields.backward->lse));
    inputs.push_back(Input(kTensorO, "o", wire::kStreamO, fields.backward->o));
    inputs.push_back(Input(kTensorDO, "d_o", wire::kStreamDO, fields.backward->d_o));
  }
  return inputs;
}

// An output; of `place` and its name only where the contract has one.
OutputTensor Output(TensorSet tensor, const char* name, int stream_number, int response_number,
                    DType dtype, absl::Span<const int64_t> shape, const char* place_name = "",
                    const std::optional<wire::RegionPlace>& place = {}) {
  OutputTensor output;
  output.tensor = tensor;
  output.name = name;
  output.stream_number = stream_number;
  output.dtype = dtype;
  output.bytes = static_cast<int64_t>(SizeOf(dtype));
  for (const int64_t extent : shape) output.bytes *= extent;
  output.response_number = response_number;
  output.shape.assign(shape.begin(), shape.end());
  output.place_name = place_name;
  output.place = place;
  return output;
}

// REQUIRES: the inputs' sizes are known to be those of what came or to lie within their limits;
// each output is at most twice as large as an input (float32 for 16 bits), so no product overflows.
std::vector<OutputTensor> OutputsOf(const AttendFields& fields, const AttentionProblem& problem) {
  std::vector<OutputTensor> outputs;
  if (!fields.backward.has_value()) {
    using Number = wire::ResponseNumber;
    if (fields.want_lse) {
      outputs.push_back(Output(kTensorLse, "lse", wire::kStreamLse, Number::kLse, DType::kFloat32,
                               {problem.total_q, problem.num_q_heads}, "lse_place",
                               fields.lse_place));
    }
    outputs.push_back(Output(kTensorO, "o", wire::kStreamO, Number::kO, problem.dtype,
                             fields.q.shape, "o_place", fields.o_place));
    return outputs;
  }
  using Number = wire::BackwardResponseNumber;
  const BackwardFields& backward = *fields.backward;
  if (backward.want_bias_gradient && fields.bias == WireBias::kAlibi) {
    outputs.push_back(Output(kTensorDSlopes, "dslopes", wire::kStreamDSlopes, Number::kDSlopes,
                             DType::kFloat32, fields.slopes.shape));
  }
  if (backward.want_bias_gradient && fields.bias == WireBias::kLowRank) {
    outputs.push_back(Output(kTensorDPhiQ, "dphi_q", wire::kStreamDPhiQ, Number::kDPhiQ,
                             DType::kFloat32, fields.phi_q.shape, "dphi_q_place",
                             backward.dphi_q_place));
    outputs.push_back(Output(kTensorDPhiK, "dphi_k", wire::kStreamDPhiK, Number::kDPhiK,
                             DType::kFloat32, fields.phi_k.shape, "dphi_k_place",
                             backward.dphi_k_place));
  }
  outputs.push_back(Output(kTensorDQ, "dq", wire::kStreamDQ, Number::kDQ, problem.dtype,
                           fields.q.shape, "dq_place", backward.dq_place));
  outputs.push_back(Output(kTensorDK, "dk", wire::kStreamDK, Number::kDK, problem.dtype,
                           fields.k.shape, "dk_place", backward.dk_place));
  outputs.push_back(Output(kTensorDV, "dv", wire::kStreamDV, Number::kDV, problem.dtype,
                           fields.v.shape, "dv_place", backward.dv_place));
  return outputs;
}

struct NamedPlace {
  const char* name;
  bool present;
};

std::vector<NamedPlace> PlacesOf(const AttendFields& fields) {
  if (!fields.backward.has_value()) {
    return {{"o_place", fields.o_place.has_value()}, {"lse_place", fields.lse_place.has_value()}};
  }
  const BackwardFields& backward = *fields.backward;
  return {{"dq_place", backward.dq_place.has_value()},
          {"dk_place", backward.dk_place.has_value()},
          {"dv_place", backward.dv_place.has_value()},
          {"dphi_q_place", backward.dphi_q_place.has_value()},
          {"dphi_k_place", backward.dphi_k_place.has_value()}};
}

// That every place is of an output; none is in a stream, whose answer comes in chunks.
absl::Status CheckPlaces(const AttendFields& fields, absl::Span<const OutputTensor> outputs) {
  for (const NamedPlace& place : PlacesOf(fields)) {
    if (!place.present) continue;
    if (fields.data_follows) {
      return Invalid(
          place.name,
          " is set; accepted: none in the header of a stream, whose answer comes in chunks");
    }
    bool wanted = false;
    for (const OutputTensor& output : outputs) {
      wanted = wanted || absl::string_view(output.place_name) == place.name;
    }
    if (!wanted) {
      return Invalid(place.name, " is set; accepted: only with ",
                     fields.backward.has_value() ? "low_rank and want_bias_gradient" : "want_lse");
    }
  }
  return absl::OkStatus();
}

absl::Status StreamTooLarge(absl::string_view what, int64_t bytes, const AttendLimits& limits) {
  return absl::ResourceExhaustedError(absl::StrCat(what, " would take ", bytes,
                                                   " bytes; the limit is ", limits.max_stream_bytes,
                                                   " bytes a stream"));
}

// Before a sum of sizes that nobody sent yet is made, or a product of the counts behind them.
absl::Status CheckStreamInputs(absl::Span<const InputTensor> inputs, const AttendLimits& limits) {
  for (const InputTensor& input : inputs) {
    if (input.bytes > limits.max_stream_bytes) {
      return StreamTooLarge(input.name, input.bytes, limits);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckResponseBytes(absl::Span<const OutputTensor> outputs,
                                const AttendLimits& limits) {
  int64_t bytes = kResponseOverheadBytes;
  for (const OutputTensor& output : outputs) bytes += output.place.has_value() ? 0 : output.bytes;
  if (bytes <= limits.max_message_bytes) return absl::OkStatus();
  const std::string sizes =
      absl::StrJoin(outputs, ", ", [](std::string* out, const OutputTensor& output) {
        absl::StrAppend(out, output.name, " ", output.bytes);
      });
  return absl::ResourceExhaustedError(absl::StrCat("the response would take up to ", bytes,
                                                   " bytes (", sizes, "); the limit is ",
                                                   limits.max_message_bytes, " bytes a message"));
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
  if (status.ok() && fields.backward.has_value()) status = CheckBackward(fields, limits, &problem);
  if (!status.ok()) return status;

  AttendTensors& tensors = valid.tensors;
  tensors.inputs = InputsOf(fields);
  if (fields.data_follows) status = CheckStreamInputs(tensors.inputs, limits);
  if (!status.ok()) return status;
  tensors.outputs = OutputsOf(fields, problem);
  if (status = CheckPlaces(fields, tensors.outputs); !status.ok()) return status;
  if (!fields.data_follows) {
    status = CheckResponseBytes(tensors.outputs, limits);
  } else if (tensors.bytes() > limits.max_stream_bytes) {
    status = StreamTooLarge("the tensors of request and answer together", tensors.bytes(), limits);
  }
  if (!status.ok()) return status;
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
