#include "client/load/workload.h"

#include <cmath>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/alibi.h"

namespace flashbias::client {
namespace {

// Far above what any message limit lets through; keeps every product below 2^62.
constexpr int64_t kMaxLen = int64_t{1} << 24;
constexpr int64_t kMaxBytes = int64_t{1} << 31;

absl::Status CheckRange(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; accepted: ", least, " to ", most));
}

absl::StatusOr<WorkloadOptions> Resolve(WorkloadOptions options) {
  if (options.direction != LoadDirection::kForward) options.want_lse = true;
  if (options.bias_gradient && options.direction == LoadDirection::kForward) {
    return absl::InvalidArgumentError(
        "--bias_gradient is set; accepted: only with --direction=backward or both");
  }
  if (options.bias_gradient && options.alibi == "none") {
    return absl::InvalidArgumentError("--bias_gradient is set; accepted: only with slopes");
  }
  if (options.kv_heads == 0) options.kv_heads = options.heads;
  if (options.q_len == 0) options.q_len = options.seq_len;
  for (const absl::Status& status :
       {CheckRange("--heads", options.heads, 1, kMaxHeads),
        CheckRange("--kv_heads", options.kv_heads, 1, kMaxHeads),
        CheckRange("--head_dim", options.head_dim, 1, flashbias::kMaxHeadDim),
        CheckRange("--seq_len", options.seq_len, 1, kMaxLen),
        CheckRange("--q_len", options.q_len, 1, kMaxLen),
        CheckRange("--inputs", options.num_inputs, 1, 64)}) {
    if (!status.ok()) return status;
  }
  if (options.heads % options.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--kv_heads is ", options.kv_heads, "; accepted: divisors of --heads, ", options.heads));
  }
  if (options.eps.has_value() && !(*options.eps >= 0 && *options.eps <= kMaxEps)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--eps is ", *options.eps, "; accepted: 0 to 2^-8"));
  }
  if (options.alibi != "standard" && options.alibi != "seed" && options.alibi != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat("--alibi is '", options.alibi, "'; accepted: standard, seed, none"));
  }
  // What one input takes; more is a slip of the keyboard, and would be met by a failed allocation.
  const int64_t bytes = static_cast<int64_t>(SizeOf(options.dtype)) * options.head_dim *
                        (options.heads * options.q_len + 2 * options.kv_heads * options.seq_len);
  if (bytes > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--heads, --head_dim, --seq_len and --q_len make a request of ", bytes,
                     " bytes; accepted: up to ", kMaxBytes));
  }
  return options;
}

std::string RandomNormal(DType dtype, int64_t count, std::mt19937_64* random) {
  std::string data(static_cast<size_t>(count) * SizeOf(dtype), '\0');
  std::normal_distribution<float> normal;
  for (int64_t n = 0; n < count; ++n) StoreElement(dtype, data.data(), n, normal(*random));
  return data;
}

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

absl::StatusOr<std::unique_ptr<Workload>> Workload::Create(const WorkloadOptions& options) {
  absl::StatusOr<WorkloadOptions> resolved = Resolve(options);
  if (!resolved.ok()) return resolved.status();
  std::unique_ptr<Workload> workload(new Workload(*resolved));
  workload->Generate();
  absl::StatusOr<RequestSummary> summary = workload->Summarize();
  if (!summary.ok()) return summary.status();
  workload->summary_ = *summary;
  return workload;
}

absl::StatusOr<RequestSummary> Workload::Summarize() const {
  absl::StatusOr<RequestSummary> forward = SummarizeRequest(request(0));
  if (!forward.ok() || options_.direction == LoadDirection::kForward) return forward;
  // Of an answer of the right size, whose memory is not read.
  AttendResult answer;
  answer.lse.resize(static_cast<size_t>(options_.q_len * options_.heads));
  AttendBackwardRequest gradients = backward_request(0, answer);
  gradients.o.data = inputs_[0]->q.data();
  absl::StatusOr<RequestSummary> backward = SummarizeRequest(gradients);
  if (!backward.ok()) return backward;
  const bool both = options_.direction == LoadDirection::kBoth;
  forward->request_bytes = backward->request_bytes + (both ? forward->request_bytes : 0);
  forward->response_bytes = backward->response_bytes + (both ? forward->response_bytes : 0);
  return forward;
}

AttendBackwardRequest Workload::backward_request(int input, const AttendResult& result) const {
  const Input& of = *inputs_[input];
  AttendBackwardRequest request;
  request.forward = of.request;
  request.o = of.request.q;
  request.o.data = result.o.data();
  request.lse = result.lse;
  request.d_o = of.request.q;
  request.d_o.data = of.d_o.data();
  request.want_bias_gradient = options_.bias_gradient;
  return request;
}

void Workload::Generate() {
  const WorkloadOptions& o = options_;
  sequence_ = {.q_len = o.q_len, .kv_len = o.seq_len, .query_start = o.seq_len - o.q_len};
  if (o.alibi == "standard") slopes_ = StandardAlibiSlopes(static_cast<int>(o.heads));
  if (o.alibi == "seed") slopes_ = SeedAlibiSlopes(static_cast<int>(o.heads));
  std::mt19937_64 random(o.seed);
  for (int n = 0; n < o.num_inputs; ++n) {
    auto input = std::make_unique<Input>();
    const int64_t kv_count = o.seq_len * o.kv_heads * o.head_dim;
    input->q = RandomNormal(o.dtype, o.q_len * o.heads * o.head_dim, &random);
    input->k = RandomNormal(o.dtype, kv_count, &random);
    input->v = RandomNormal(o.dtype, kv_count, &random);
    if (o.direction != LoadDirection::kForward) {
      input->d_o = RandomNormal(o.dtype, o.q_len * o.heads * o.head_dim, &random);
    }
    const std::vector<int64_t> kv_shape = {o.seq_len, o.kv_heads, o.head_dim};
    input->request = {
        .q = {.dtype = o.dtype, .shape = {o.q_len, o.heads, o.head_dim}, .data = input->q.data()},
        .k = {.dtype = o.dtype, .shape = kv_shape, .data = input->k.data()},
        .v = {.dtype = o.dtype, .shape = kv_shape, .data = input->v.data()},
        .mask = o.causal ? MaskKind::kCausal : MaskKind::kFull,
        .eps = o.eps,
        .want_lse = o.want_lse};
    if (!slopes_.empty()) input->request.bias = AlibiSlopes{.slopes = slopes_};
    inputs_.push_back(std::move(input));
  }
}

AttentionProblem Workload::problem(int input) const {
  AttentionProblem problem;
  problem.dtype = options_.dtype;
  problem.num_q_heads = static_cast<int>(options_.heads);
  problem.num_kv_heads = static_cast<int>(options_.kv_heads);
  problem.head_dim = static_cast<int>(options_.head_dim);
  problem.total_q = options_.q_len;
  problem.total_kv = options_.seq_len;
  problem.q = inputs_[input]->q.data();
  problem.k = inputs_[input]->k.data();
  problem.v = inputs_[input]->v.data();
  if (options_.direction != LoadDirection::kForward) {
    problem.direction = Direction::kBackward;
    problem.gradients.d_o = inputs_[input]->d_o.data();
  }
  problem.sequences = absl::MakeConstSpan(&sequence_, 1);
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
