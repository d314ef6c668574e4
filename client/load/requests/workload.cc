#include "client/load/requests/workload.h"

#include <cmath>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/load/requests/counter_random.h"
#include "client/load/requests/length_distribution.h"
#include "kernels/alibi.h"

namespace flashbias::client {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 31;

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

absl::Status CheckRange(absl::string_view prefix, const char* name, int64_t value, int64_t least,
                        int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Invalid(prefix, name, " is ", value, "; accepted: ", least, " to ", most);
}

absl::Status CheckBiasGradient(const WorkloadOptions& options, absl::string_view prefix) {
  if (!options.bias_gradient) return absl::OkStatus();
  if (options.direction == LoadDirection::kForward) {
    return Invalid(prefix, "bias_gradient is set; accepted: only with ", prefix,
                   "direction backward or both");
  }
  if (options.alibi == "none") {
    return Invalid(prefix, "bias_gradient is set; accepted: only with slopes");
  }
  return absl::OkStatus();
}

int64_t BytesOfInput(const WorkloadOptions& o) {
  const int64_t q_tensors = o.direction == LoadDirection::kForward ? 1 : 2;
  return static_cast<int64_t>(SizeOf(o.dtype)) * o.head_dim *
         (q_tensors * o.heads * o.q_len + 2 * o.kv_heads * o.seq_len);
}

absl::StatusOr<WorkloadOptions> Resolve(WorkloadOptions options, absl::string_view prefix) {
  if (options.direction != LoadDirection::kForward) options.want_lse = true;
  if (options.kv_heads == 0) options.kv_heads = options.heads;
  if (options.q_len == 0) options.q_len = options.seq_len;
  for (const absl::Status& status :
       {CheckRange(prefix, "heads", options.heads, 1, kMaxHeads),
        CheckRange(prefix, "kv_heads", options.kv_heads, 1, kMaxHeads),
        CheckRange(prefix, "head_dim", options.head_dim, 1, flashbias::kMaxHeadDim),
        CheckRange(prefix, "seq_len", options.seq_len, 1, kMaxLength),
        CheckRange(prefix, "q_len", options.q_len, 1, kMaxLength),
        CheckRange(prefix, "inputs", options.num_inputs, 1, 64)}) {
    if (!status.ok()) return status;
  }
  if (options.heads % options.kv_heads != 0) {
    return Invalid(prefix, "kv_heads is ", options.kv_heads, "; accepted: divisors of ", prefix,
                   "heads, ", options.heads);
  }
  if (options.eps.has_value() && !(*options.eps >= 0 && *options.eps <= kMaxEps)) {
    return Invalid(prefix, "eps is ", *options.eps, "; accepted: 0 to 2^-8");
  }
  if (options.alibi != "standard" && options.alibi != "seed" && options.alibi != "none") {
    return Invalid(prefix, "alibi is '", options.alibi, "'; accepted: standard, seed, none");
  }
  if (absl::Status status = CheckBiasGradient(options, prefix); !status.ok()) return status;
  // What one input takes; more is a slip of the keyboard, and would be met by a failed allocation.
  if (const int64_t bytes = BytesOfInput(options); bytes > kMaxBytes) {
    return Invalid(prefix, "heads, ", prefix, "head_dim, ", prefix, "seq_len and ", prefix,
                   "q_len make an input of ", bytes, " bytes; accepted: up to ", kMaxBytes);
  }
  return options;
}

// 65536 standard normal values of a dtype, of which tensors are drawn: a look-up an element is much
// cheaper than a normal distribution.
class NormalTable {
 public:
  NormalTable(DType dtype, uint64_t seed) : dtype_(dtype), values_(kCount * SizeOf(dtype), '\0') {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t n = 0; n < kCount; ++n) StoreElement(dtype, values_.data(), n, normal(random));
  }

  // REQUIRES: `stream` is another for each tensor.
  std::string Draw(int64_t count, uint64_t seed, uint64_t stream) const {
    return SizeOf(dtype_) == 4 ? DrawAs<uint32_t>(count, seed, stream)
                               : DrawAs<uint16_t>(count, seed, stream);
  }

 private:
  static constexpr int64_t kCount = 65536;

  template <typename Element>
  std::string DrawAs(int64_t count, uint64_t seed, uint64_t stream) const {
    std::string data(static_cast<size_t>(count) * sizeof(Element), '\0');
    const uint64_t start = RandomBits(seed, stream, 0);
    uint64_t bits = 0;
    for (int64_t n = 0; n < count; ++n) {
      bits = n % 4 == 0 ? MixBits(start + static_cast<uint64_t>(n)) : bits >> 16;
      std::memcpy(&data[static_cast<size_t>(n) * sizeof(Element)],
                  &values_[(bits % kCount) * sizeof(Element)], sizeof(Element));
    }
    return data;
  }

  const DType dtype_;
  std::string values_;
};

}  // namespace

std::string Name(LoadDirection direction) {
  switch (direction) {
    case LoadDirection::kForward:
      return "forward";
    case LoadDirection::kBackward:
      return "backward";
    case LoadDirection::kBoth:
      return "both";
  }
  return "";
}

absl::StatusOr<int64_t> Workload::InputBytes(const WorkloadOptions& options,
                                             absl::string_view field_prefix) {
  const absl::StatusOr<WorkloadOptions> resolved = Resolve(options, field_prefix);
  if (!resolved.ok()) return resolved.status();
  return BytesOfInput(*resolved);
}

absl::StatusOr<std::unique_ptr<Workload>> Workload::Create(const WorkloadOptions& options,
                                                           absl::string_view field_prefix) {
  const absl::StatusOr<WorkloadOptions> resolved = Resolve(options, field_prefix);
  if (!resolved.ok()) return resolved.status();
  std::unique_ptr<Workload> workload(new Workload(*resolved));
  workload->Generate();
  absl::StatusOr<RequestSummary> summary = workload->Summarize();
  if (!summary.ok()) return summary.status();
  workload->summary_ = *summary;
  return workload;
}

absl::StatusOr<RequestSummary> Workload::Summarize() const {
  absl::StatusOr<RequestSummary> summary =
      SummarizeRequest(request(0, options_.q_len, options_.seq_len));
  if (!summary.ok()) return summary;
  const CallBytes largest = bytes(options_.q_len, options_.seq_len);
  summary->request_bytes = largest.request;
  summary->response_bytes = largest.response;
  return summary;
}

Workload::CallBytes Workload::bytes(int64_t q_len, int64_t kv_len) const {
  const WorkloadOptions& o = options_;
  const auto element = static_cast<int64_t>(SizeOf(o.dtype));
  const int64_t q = q_len * o.heads * o.head_dim * element;
  const int64_t kv = kv_len * o.kv_heads * o.head_dim * element;
  const auto lse = q_len * o.heads * static_cast<int64_t>(sizeof(float));
  const auto slopes = static_cast<int64_t>(slopes_.size() * sizeof(float));
  CallBytes total;
  if (o.direction != LoadDirection::kBackward) {
    total.request += q + 2 * kv + slopes;
    total.response += q + (o.want_lse ? lse : 0);
  }
  if (o.direction != LoadDirection::kForward) {
    total.request += 3 * q + 2 * kv + lse + slopes;  // q, o, d_o
    total.response += q + 2 * kv + (o.bias_gradient ? slopes : 0);
  }
  return total;
}

AttendRequest Workload::request(int input, int64_t q_len, int64_t kv_len) const {
  const WorkloadOptions& o = options_;
  const Input& of = inputs_[input];
  const std::vector<int64_t> kv_shape = {kv_len, o.kv_heads, o.head_dim};
  AttendRequest request = {
      .q = {.dtype = o.dtype, .shape = {q_len, o.heads, o.head_dim}, .data = of.q.data()},
      .k = {.dtype = o.dtype, .shape = kv_shape, .data = of.k.data()},
      .v = {.dtype = o.dtype, .shape = kv_shape, .data = of.v.data()},
      .mask = o.causal ? MaskKind::kCausal : MaskKind::kFull,
      .eps = o.eps,
      .want_lse = o.want_lse};
  if (!slopes_.empty()) request.bias = AlibiSlopes{.slopes = slopes_};
  return request;
}

AttendBackwardRequest Workload::backward_request(int input, int64_t q_len, int64_t kv_len,
                                                 const void* o, absl::Span<const float> lse) const {
  AttendBackwardRequest request;
  request.forward = this->request(input, q_len, kv_len);
  request.o = request.forward.q;
  request.o.data = o;
  request.lse = lse;
  request.d_o = request.forward.q;
  request.d_o.data = inputs_[input].d_o.data();
  request.want_bias_gradient = options_.bias_gradient;
  return request;
}

void Workload::Generate() {
  const WorkloadOptions& o = options_;
  if (o.alibi == "standard") slopes_ = StandardAlibiSlopes(static_cast<int>(o.heads));
  if (o.alibi == "seed") slopes_ = SeedAlibiSlopes(static_cast<int>(o.heads));
  const NormalTable table(o.dtype, o.seed);
  const int64_t q_count = o.q_len * o.heads * o.head_dim;
  const int64_t kv_count = o.seq_len * o.kv_heads * o.head_dim;
  uint64_t stream = 0;
  for (int n = 0; n < o.num_inputs; ++n) {
    Input input;
    input.q = table.Draw(q_count, o.seed, stream++);
    input.k = table.Draw(kv_count, o.seed, stream++);
    input.v = table.Draw(kv_count, o.seed, stream++);
    if (o.direction != LoadDirection::kForward) input.d_o = table.Draw(q_count, o.seed, stream++);
    inputs_.push_back(std::move(input));
  }
}

Sequence Workload::sequence(int64_t q_len, int64_t kv_len) {
  return {.q_len = q_len, .kv_len = kv_len, .query_start = kv_len - q_len};
}

AttentionProblem Workload::problem(int input, const Sequence& sequence) const {
  AttentionProblem problem;
  problem.dtype = options_.dtype;
  problem.num_q_heads = static_cast<int>(options_.heads);
  problem.num_kv_heads = static_cast<int>(options_.kv_heads);
  problem.head_dim = static_cast<int>(options_.head_dim);
  problem.total_q = sequence.q_len;
  problem.total_kv = sequence.kv_len;
  problem.q = inputs_[input].q.data();
  problem.k = inputs_[input].k.data();
  problem.v = inputs_[input].v.data();
  if (options_.direction != LoadDirection::kForward) {
    problem.direction = Direction::kBackward;
    problem.gradients.d_o = inputs_[input].d_o.data();
  }
  problem.sequences = absl::MakeConstSpan(&sequence, 1);
  problem.mask = {.causal = options_.causal};
  problem.softmax_scale =
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(options_.head_dim)));
  if (!slopes_.empty()) {
    problem.bias_kind = BiasKind::kAlibi;
    problem.alibi.slopes = slopes_.data();
  }
  if (options_.eps.has_value()) problem.eps = *options_.eps;
  return problem;
}

}  // namespace flashbias::client
