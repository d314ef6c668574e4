#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cuda/ceil_div.h"
#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/cuda/hopper/tensor_maps.h"
#include "kernels/cuda/portable/portable_attention.h"
#include "kernels/cuda/work_order.h"
#include "kernels/cuda/workspace_layout.h"

namespace flashbias::cuda {
namespace {

// Up to so many query rows, heads of one key/value head share a tile.
constexpr int kMaxRowsToShareTiles = 16;

bool HopperServes(const AttentionProblem& p) {
  if (p.bias_kind == BiasKind::kLowRank) return false;
  // Both the scale in base 2 and its inverse are used.
  if (!(p.softmax_scale > 0) || !std::isfinite(1.0f / p.softmax_scale) ||
      !std::isfinite(2 * p.softmax_scale)) {
    return false;
  }
  if (p.bias_kind != BiasKind::kAlibi) return true;
  if (p.dtype == DType::kFloat16 && p.softmax_scale > hopper::kMaxFloat16Scale) return false;
  const size_t count = p.num_q_heads * (p.alibi.per_sequence ? p.sequences.size() : 1);
  return std::all_of(p.alibi.slopes, p.alibi.slopes + count, [&](float slope) {
    return std::fabs(slope) <= hopper::kMaxSlopeOverScale * p.softmax_scale;
  });
}

KernelFamily ChooseFamily(const AttentionProblem& problem, const DeviceTraits& device,
                          const PlanOptions& options) {
  if (device.compute_capability != 90 || !HopperServes(problem)) return KernelFamily::kPortable;
  if (options.family == PlanOptions::Family::kPortable) return KernelFamily::kPortable;
  if (options.family == PlanOptions::Family::kHopper) return KernelFamily::kHopper;
  // A few rows against many keys: what counts is how many thread blocks read the keys.
  const bool few_rows =
      std::all_of(problem.sequences.begin(), problem.sequences.end(),
                  [](const Sequence& s) { return s.q_len <= kMaxRowsToShareTiles; });
  return few_rows ? KernelFamily::kPortable : KernelFamily::kHopper;
}

}  // namespace

AttentionPlan::Group AttentionPlan::GroupOf(const AttentionProblem& problem,
                                            const DeviceTraits& device,
                                            const PlanOptions& options) {
  return {.dtype = problem.dtype,
          .padded_head_dim = PaddedHeadDim(problem.head_dim),
          .low_rank = problem.bias_kind == BiasKind::kLowRank,
          .family = ChooseFamily(problem, device, options)};
}

absl::StatusOr<AttentionPlan> AttentionPlan::Create(absl::Span<const AttentionProblem> problems,
                                                    const DeviceTraits& device,
                                                    const PlanOptions& options) {
  if (problems.empty()) return absl::InvalidArgumentError("problems is empty; accepted: 1 or more");
  AttentionPlan plan;
  plan.device_ = device;
  plan.group_ = GroupOf(problems[0], device, options);
  plan.num_problems_ = static_cast<int>(problems.size());
  for (const AttentionProblem& problem : problems) {
    absl::Status served = CheckServed(problem);
    if (!served.ok()) return served;
    if (problem.direction != Direction::kForward) {
      return absl::InvalidArgumentError("direction is backward; accepted: forward");
    }
    if (GroupOf(problem, device, options) != plan.group_) {
      return absl::InvalidArgumentError(
          "problems differ in dtype, padded head_dim, kind of bias or kernel family; "
          "accepted: one of each");
    }
    plan.table_.Add(problem, options.skipping, /*score_work=*/1);
  }
  if (plan.family() == KernelFamily::kPortable) {
    plan.ShareTiles();
    plan.ChooseSplits();
  }
  plan.MakeItems();
  plan.MakeLayout();
  return plan;
}

int AttentionPlan::QueryTileRows() const {
  return family() == KernelFamily::kHopper ? hopper::QueryTileRows(group_.padded_head_dim)
                                           : portable::kQueryTileRows;
}

int AttentionPlan::KeyTileKeys() const {
  return family() == KernelFamily::kHopper ? hopper::kKeyTileKeys : portable::kKeyTileKeys;
}

// Heads of a key/value head that have few query rows share tiles.
void AttentionPlan::ShareTiles() {
  for (size_t n = 0; n < table_.size(); ++n) {
    SequenceParams& s = table_.params(n);
    // A tile of several heads has one set of factors.
    if (s.phi_k_heads > 1 || s.q_len > kMaxRowsToShareTiles) continue;
    const int group = s.num_q_heads / s.num_kv_heads;
    for (int heads = group; heads > 1; --heads) {
      if (group % heads == 0 && heads * s.q_len <= portable::kQueryTileRows) {
        s.heads_per_tile = heads;
        break;
      }
    }
  }
}

// Cuts the keys of sequences whose query tiles alone leave multiprocessors idle. Each sequence is
// looked at for itself, so that a neighbour changes no result.
void AttentionPlan::ChooseSplits() {
  for (size_t n = 0; n < table_.size(); ++n) {
    SequenceParams& s = table_.params(n);
    const int64_t rows = int64_t{s.q_len} * s.heads_per_tile;
    const int64_t items =
        CeilDiv<int64_t>(rows, portable::kQueryTileRows) * (s.num_q_heads / s.heads_per_tile);
    if (items == 0 || items >= device_.num_sms) continue;
    const int64_t wanted = CeilDiv<int64_t>(2 * int64_t{device_.num_sms}, items);
    const int64_t possible =
        std::min<int64_t>(s.kv_len / portable::kMinKeysPerSplit, portable::kMaxSplits);
    const int64_t splits = std::min(wanted, possible);
    if (splits <= 1) continue;
    const int64_t tiles = CeilDiv<int64_t>(s.kv_len, portable::kKeyTileKeys);
    s.keys_per_split = static_cast<int32_t>(CeilDiv(tiles, splits) * portable::kKeyTileKeys);
    s.num_splits = CeilDiv(s.kv_len, s.keys_per_split);
    if (s.num_splits == 1) continue;
    s.partial_begin = partial_rows_;
    partial_rows_ += int64_t{s.q_len} * s.num_q_heads * s.num_splits;
    has_splits_ = true;
  }
}

// All items, longest first by the number of key tiles that they are expected to compute.
void AttentionPlan::MakeItems() {
  std::vector<WorkItem> unordered;
  std::vector<int32_t> costs;
  for (size_t n = 0; n < table_.size(); ++n) {
    const SequenceParams& s = table_.params()[n];
    if (s.q_len == 0) continue;  // there may be tens of thousands, of as many heads
    const float* const slopes = table_.host_slopes(n);
    const int rows_per_tile = QueryTileRows() / s.heads_per_tile;
    for (int head = 0; head < s.num_q_heads; head += s.heads_per_tile) {
      const double reach = ReachOfHead(s, slopes == nullptr ? 0 : slopes[head]);
      for (int32_t q = 0; q < s.q_len; q += rows_per_tile) {
        const int64_t q_end = std::min<int64_t>(int64_t{q} + rows_per_tile, s.q_len);
        const double expected = ExpectedKeysOfRows(s, q, q_end, reach) / s.num_splits;
        const auto cost = static_cast<int32_t>(expected / KeyTileKeys());
        for (int split = 0; split < s.num_splits; ++split) {
          unordered.push_back({static_cast<int32_t>(n), q, head, split});
          costs.push_back(cost);
        }
      }
    }
  }
  items_ = LongestFirst(unordered, costs);
}

void AttentionPlan::MakeLayout() {
  WorkspaceLayout layout;
  layout_.next_item = layout.Place<unsigned>(2);
  layout_.tile_counts = layout.Place<TileCounts>(num_problems_);
  layout_.sequences = layout.Place(table_.params());
  layout_.tensor_maps = layout.Place<hopper::SequenceTensorMaps>(
      family() == KernelFamily::kHopper ? table_.size() : 0);
  layout_.items = layout.Place(items_);
  table_.PlaceUploads(&layout);
  layout_.end_of_upload = layout.end();
  table_.PlaceScratch(&layout);
  layout_.partial_o = layout.Place<float>(partial_rows_ * group_.padded_head_dim);
  layout_.partial_lse = layout.Place<float>(partial_rows_);
  layout_.end = layout.end();
}

absl::Status AttentionPlan::Bind(void* staging, void* workspace) {
  staging_ = staging;
  workspace_ = workspace;
  std::memset(staging, 0, layout_.end_of_upload);
  table_.Bind(staging, workspace);
  CopyArray(table_.params(), staging, layout_.sequences);
  CopyArray(items_, staging, layout_.items);

  params_ = {.sequences = ArrayAt<const SequenceParams>(workspace, layout_.sequences),
             .items = ArrayAt<const WorkItem>(workspace, layout_.items),
             .next_item = ArrayAt<unsigned>(workspace, layout_.next_item),
             .tile_counts = ArrayAt<TileCounts>(workspace, layout_.tile_counts),
             .partial_o = ArrayAt<float>(workspace, layout_.partial_o),
             .partial_lse = ArrayAt<float>(workspace, layout_.partial_lse),
             .num_items = static_cast<int32_t>(items_.size()),
             .num_sequences = static_cast<int32_t>(table_.size())};
  if (family() != KernelFamily::kHopper) return absl::OkStatus();
  params_.tensor_maps = ArrayAt<char>(workspace, layout_.tensor_maps);
  auto* const maps = ArrayAt<hopper::SequenceTensorMaps>(staging, layout_.tensor_maps);
  for (size_t n = 0; n < table_.size(); ++n) {
    absl::Status status = hopper::EncodeTensorMaps(table_.params()[n], group_.dtype,
                                                   group_.padded_head_dim, &maps[n]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

hopper::HostPlan AttentionPlan::hopper_plan() const {
  return {.params = params_,
          .sequences = table_.params().data(),
          .tensor_maps = ArrayAt<hopper::SequenceTensorMaps>(staging_, layout_.tensor_maps),
          .items = items_.data(),
          .slopes = table_.size() == 0 ? nullptr : table_.host_slopes(0),
          .after_key_norms = key_norm_params().num_blocks > 0};
}

}  // namespace flashbias::cuda
