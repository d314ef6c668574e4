#include "kernels/cuda/attention_planner.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/attention_launch.h"
#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/cuda/portable/portable_attention.h"
#include "kernels/cuda/runtime_device.h"

namespace flashbias::cuda {
namespace {

// Arrays of a workspace, each aligned to 256 bytes.
constexpr size_t kAlignmentSlack = size_t{16} * 256;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether a plan packs the tensors: what is copied to the device lies there as it should.
bool Packs(const AttentionProblem& p) {
  const auto unaligned = [&p](TensorSet tensor, const void* data) {
    return (p.on_device & tensor) != 0 && reinterpret_cast<uintptr_t>(data) % 16 != 0;
  };
  return p.head_dim % 8 != 0 || unaligned(kTensorQ, p.q) || unaligned(kTensorK, p.k) ||
         unaligned(kTensorV, p.v);
}

class AttentionLaunch final : public PlannedLaunch {
 public:
  explicit AttentionLaunch(AttentionPlan plan) : plan_(std::move(plan)) {}

  size_t staging_bytes() const override { return plan_.staging_bytes(); }
  size_t workspace_bytes() const override { return plan_.workspace_bytes(); }
  absl::Status Bind(void* staging, void* workspace) override {
    return plan_.Bind(staging, workspace);
  }
  ErrorCode Upload(Stream* stream) override { return UploadPlan(plan_, Native(stream)); }
  ErrorCode Launch(Stream* stream) override { return LaunchAttention(plan_, Native(stream)); }
  const TileCounts* tile_counts() const override { return plan_.tile_counts(); }

 private:
  AttentionPlan plan_;
};

// The most parts that a plan cuts a sequence's keys into.
int64_t MaxSplits(const AttentionProblem& p, const Sequence& s, int num_sms) {
  const int64_t fewest_items =
      std::max<int64_t>(1, p.num_kv_heads * CeilDiv(s.q_len, portable::kQueryTileRows));
  if (fewest_items >= num_sms) return 1;
  return std::clamp<int64_t>(
      CeilDiv(2 * int64_t{num_sms}, fewest_items), 1,
      std::clamp<int64_t>(s.kv_len / portable::kMinKeysPerSplit, 1, portable::kMaxSplits));
}

}  // namespace

uint64_t AttentionPlanner::GroupOf(const AttentionProblem& problem) const {
  const AttentionPlan::Group group = AttentionPlan::GroupOf(problem, device_, options_);
  return static_cast<uint64_t>(group.dtype) | static_cast<uint64_t>(group.family) << 8 |
         static_cast<uint64_t>(group.low_rank) << 16 |
         static_cast<uint64_t>(group.padded_head_dim) << 24;
}

size_t AttentionPlanner::WorkspaceBound(const AttentionProblem& problem) const {
  const AttentionPlan::Group group = AttentionPlan::GroupOf(problem, device_, options_);
  const int64_t heads = problem.num_q_heads;
  int64_t bytes = kAlignmentSlack + sizeof(TileCounts) + 3 * sizeof(PackJob);
  const int64_t slope_sets =
      problem.alibi.per_sequence ? static_cast<int64_t>(problem.sequences.size()) : 1;
  bytes += slope_sets * heads * static_cast<int64_t>(sizeof(float));
  for (const Sequence& s : problem.sequences) {
    bytes += sizeof(SequenceParams) + sizeof(hopper::SequenceTensorMaps) + sizeof(KeyNormJob);
    bytes += CeilDiv(problem.num_kv_heads, KeyNormSliceHeads(problem.head_dim)) *
             static_cast<int64_t>(sizeof(unsigned));
    bytes += 2 * problem.num_kv_heads * CeilDiv(s.kv_len, kNormTileKeys) *
             static_cast<int64_t>(sizeof(float));
    const int64_t splits = MaxSplits(problem, s, device_.num_sms);
    bytes += CeilDiv(s.q_len, portable::kQueryTileRows) * heads * splits *
             static_cast<int64_t>(sizeof(WorkItem));
    if (splits > 1) {
      bytes += s.q_len * heads * splits * (group.padded_head_dim + 1) *
               static_cast<int64_t>(sizeof(float));
    }
  }
  if (Packs(problem)) {
    const int64_t vectors =
        problem.total_q * heads + 2 * problem.total_kv * int64_t{problem.num_kv_heads};
    bytes += vectors * CeilDiv(problem.head_dim, 8) * 8 * 2 + 3 * 256;
  }
  return static_cast<size_t>(bytes);
}

absl::StatusOr<std::unique_ptr<PlannedLaunch>> AttentionPlanner::Plan(
    absl::Span<const AttentionProblem> problems) const {
  absl::StatusOr<AttentionPlan> plan = AttentionPlan::Create(problems, device_, options_);
  if (!plan.ok()) return plan.status();
  return std::make_unique<AttentionLaunch>(*std::move(plan));
}

}  // namespace flashbias::cuda
