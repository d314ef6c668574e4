#include "kernels/cuda/attention_planner.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/attention_launch.h"
#include "kernels/cuda/backward_launch.h"
#include "kernels/cuda/backward_plan.h"
#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/cuda/hopper/hopper_backward.h"
#include "kernels/cuda/portable/portable_attention.h"
#include "kernels/cuda/portable/portable_backward.h"
#include "kernels/cuda/runtime_device.h"

namespace flashbias::cuda {
namespace {

// Arrays of a workspace, each aligned to 256 bytes.
constexpr int64_t kAlignmentSlack = int64_t{24} * 256;

template <typename T>
constexpr int64_t kSizeOf{sizeof(T)};

bool IsBackward(const AttentionProblem& p) { return p.direction == Direction::kBackward; }

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether a plan packs the tensors: what is copied to the device lies there as it should.
bool Packs(const AttentionProblem& p) {
  const auto unaligned = [&p](TensorSet tensor, const void* data) {
    return (p.on_device & tensor) != 0 && reinterpret_cast<uintptr_t>(data) % 16 != 0;
  };
  return p.head_dim % 8 != 0 || unaligned(kTensorQ, p.q) || unaligned(kTensorK, p.k) ||
         unaligned(kTensorV, p.v) || (IsBackward(p) && unaligned(kTensorDO, p.gradients.d_o));
}

cudaError_t LaunchPlan(const AttentionPlan& plan, cudaStream_t stream) {
  return LaunchAttention(plan, stream);
}
cudaError_t LaunchPlan(const BackwardPlan& plan, cudaStream_t stream) {
  return LaunchBackward(plan, stream);
}

// Of an AttentionPlan or a BackwardPlan.
template <typename PlanType>
class LaunchOf final : public PlannedLaunch {
 public:
  explicit LaunchOf(PlanType plan) : plan_(std::move(plan)) {}

  size_t staging_bytes() const override { return plan_.staging_bytes(); }
  size_t workspace_bytes() const override { return plan_.workspace_bytes(); }
  absl::Status Bind(void* staging, void* workspace) override {
    return plan_.Bind(staging, workspace);
  }
  ErrorCode Upload(Stream* stream) override { return UploadPlan(plan_, Native(stream)); }
  ErrorCode Launch(Stream* stream) override { return LaunchPlan(plan_, Native(stream)); }
  const TileCounts* tile_counts() const override { return plan_.tile_counts(); }

 private:
  PlanType plan_;
};

template <typename PlanType>
absl::StatusOr<std::unique_ptr<PlannedLaunch>> PlanAs(absl::Span<const AttentionProblem> problems,
                                                      const DeviceTraits& device,
                                                      const PlanOptions& options) {
  absl::StatusOr<PlanType> plan = PlanType::Create(problems, device, options);
  if (!plan.ok()) return plan.status();
  return std::make_unique<LaunchOf<PlanType>>(*std::move(plan));
}

// The most parts that a plan cuts a sequence's keys into.
int64_t MaxSplits(const AttentionProblem& p, const Sequence& s, int num_sms) {
  const int64_t fewest_items =
      std::max<int64_t>(1, p.num_kv_heads * CeilDiv(s.q_len, portable::kQueryTileRows));
  if (fewest_items >= num_sms) return 1;
  return std::clamp<int64_t>(
      CeilDiv(2 * int64_t{num_sms}, fewest_items), 1,
      std::clamp<int64_t>(s.kv_len / portable::kMinKeysPerSplit, 1, portable::kMaxSplits));
}

// What plans of both directions take.
int64_t SharedBound(const AttentionProblem& p) {
  const int64_t heads = p.num_q_heads;
  const int64_t kv_heads = p.num_kv_heads;
  const int64_t slope_sets = p.alibi.per_sequence ? static_cast<int64_t>(p.sequences.size()) : 1;
  int64_t bytes = kAlignmentSlack + kSizeOf<TileCounts> + 4 * kSizeOf<PackJob> +
                  slope_sets * heads * kSizeOf<float>;
  for (const Sequence& s : p.sequences) {
    bytes += kSizeOf<KeyNormJob> +
             CeilDiv(kv_heads, KeyNormSliceHeads(p.head_dim)) * kSizeOf<unsigned> +
             2 * kv_heads * CeilDiv(s.kv_len, kNormTileKeys) * kSizeOf<float>;
  }
  if (Packs(p)) {
    const int64_t vectors = (IsBackward(p) ? 2 : 1) * p.total_q * heads + 2 * p.total_kv * kv_heads;
    bytes += vectors * CeilDiv(p.head_dim, 8) * 8 * 2 + 4 * 256;
  }
  return bytes;
}

int64_t ForwardBound(const AttentionProblem& p, int padded_head_dim, int num_sms) {
  const int64_t heads = p.num_q_heads;
  int64_t bytes = 0;
  for (const Sequence& s : p.sequences) {
    const int64_t splits = MaxSplits(p, s, num_sms);
    bytes += kSizeOf<SequenceParams> + kSizeOf<hopper::SequenceTensorMaps> +
             CeilDiv(s.q_len, portable::kQueryTileRows) * heads * splits * kSizeOf<WorkItem>;
    if (splits > 1) bytes += s.q_len * heads * splits * (padded_head_dim + 1) * kSizeOf<float>;
  }
  return bytes;
}

// Items are shortest, and so their number largest, with the portable kernels.
int64_t BackwardBound(const AttentionProblem& p) {
  static_assert(portable::kQItemRows <= hopper::QItemRows(128) &&
                portable::kKvItemKeys <= hopper::KvItemKeys(128));
  const int64_t heads = p.num_q_heads;
  const int64_t kv_heads = p.num_kv_heads;
  int64_t bytes = 2 * kSizeOf<SumJob>;
  for (const Sequence& s : p.sequences) {
    const int64_t q_items = CeilDiv(s.q_len, portable::kQItemRows) * heads;
    const int64_t kv_items = CeilDiv(s.kv_len, portable::kKvItemKeys) * kv_heads;
    const int64_t rows = BackwardRowStride(s.q_len) * heads;
    bytes += kSizeOf<BackwardSequence> + kSizeOf<hopper::BackwardTensorMaps> + kSizeOf<RowsJob> +
             kSizeOf<SumJob> + (q_items + kv_items) * kSizeOf<WorkItem> + rows * kSizeOf<RowStats> +
             rows / kLimitRows * kSizeOf<KeyLimits> + 2 * heads * kSizeOf<int32_t> +
             2 * kv_heads * kSizeOf<uint32_t> + q_items * kSizeOf<float>;
  }
  if (p.bias_kind == BiasKind::kLowRank) {
    const auto partials = [&](const float* wanted, int64_t rows, int phi_heads) {
      return wanted == nullptr || phi_heads == heads
                 ? 0
                 : rows * heads * p.low_rank.rank * kSizeOf<float>;
    };
    bytes += partials(p.gradients.dphi_q, p.total_q, p.low_rank.phi_q_heads) +
             partials(p.gradients.dphi_k, p.total_kv, p.low_rank.phi_k_heads);
  }
  return bytes;
}

// Of every kind of group.
template <typename Group>
uint64_t Encode(const Group& group) {
  return static_cast<uint64_t>(group.dtype) | static_cast<uint64_t>(group.family) << 8 |
         static_cast<uint64_t>(group.low_rank) << 16 |
         static_cast<uint64_t>(group.padded_head_dim) << 24;
}

}  // namespace

uint64_t AttentionPlanner::GroupOf(const AttentionProblem& problem) const {
  if (!IsBackward(problem)) return Encode(AttentionPlan::GroupOf(problem, device_, options_));
  const BackwardPlan::Group group = BackwardPlan::GroupOf(problem, device_, options_);
  return Encode(group) | static_cast<uint64_t>(group.dslopes) << 17 | uint64_t{1} << 18;
}

size_t AttentionPlanner::WorkspaceBound(const AttentionProblem& problem) const {
  const int64_t own = IsBackward(problem)
                          ? BackwardBound(problem)
                          : ForwardBound(problem, PaddedHeadDim(problem.head_dim), device_.num_sms);
  return static_cast<size_t>(SharedBound(problem) + own);
}

absl::StatusOr<std::unique_ptr<PlannedLaunch>> AttentionPlanner::Plan(
    absl::Span<const AttentionProblem> problems) const {
  if (!problems.empty() && IsBackward(problems[0])) {
    return PlanAs<BackwardPlan>(problems, device_, options_);
  }
  return PlanAs<AttentionPlan>(problems, device_, options_);
}

}  // namespace flashbias::cuda
