#include "kernels/cuda/backward_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cuda/ceil_div.h"
#include "kernels/cuda/hopper/hopper_backward.h"
#include "kernels/cuda/portable/portable_backward.h"
#include "kernels/cuda/work_order.h"
#include "kernels/cuda/workspace_layout.h"

namespace flashbias::cuda {
namespace {

// Of a score element, over the forward pass: both passes make seven products of tiles instead of
// two, and two exponentials instead of one.
constexpr double kScoreWork = 2.5;

// Rows and keys of a unit of cost.
constexpr double kCostElements = 64;

// Of a tensor that begins `elements` before it; null stays null.
template <typename T>
T* Advance(T* tensor, int64_t elements) {
  return tensor == nullptr ? nullptr : tensor + elements;
}

bool HopperServes(const AttentionProblem& p) {
  if (p.bias_kind == BiasKind::kLowRank) return false;
  // In base 2 neither 0 nor infinite.
  if (!std::isnormal(p.softmax_scale) || !std::isfinite(2 * p.softmax_scale)) return false;
  if (p.bias_kind != BiasKind::kAlibi) return true;
  const size_t count = p.num_q_heads * (p.alibi.per_sequence ? p.sequences.size() : 1);
  return std::all_of(p.alibi.slopes, p.alibi.slopes + count,
                     [](float slope) { return std::fabs(slope) <= hopper::kMaxBackwardSlope; });
}

KernelFamily ChooseFamily(const AttentionProblem& problem, const DeviceTraits& device,
                          const PlanOptions& options) {
  const bool hopper = device.compute_capability == 90 && HopperServes(problem) &&
                      options.family != PlanOptions::Family::kPortable;
  return hopper ? KernelFamily::kHopper : KernelFamily::kPortable;
}

int32_t ToCost(double elements) {
  constexpr double kMost = std::numeric_limits<int32_t>::max();
  return static_cast<int32_t>(std::min(elements / kCostElements, kMost));
}

}  // namespace

BackwardPlan::Group BackwardPlan::GroupOf(const AttentionProblem& problem,
                                          const DeviceTraits& device, const PlanOptions& options) {
  return {.dtype = problem.dtype,
          .padded_head_dim = PaddedHeadDim(problem.head_dim),
          .low_rank = problem.bias_kind == BiasKind::kLowRank,
          .dslopes = problem.bias_kind == BiasKind::kAlibi && problem.gradients.dslopes != nullptr,
          .family = ChooseFamily(problem, device, options)};
}

absl::StatusOr<BackwardPlan> BackwardPlan::Create(absl::Span<const AttentionProblem> problems,
                                                  const DeviceTraits& device,
                                                  const PlanOptions& options) {
  if (problems.empty()) return absl::InvalidArgumentError("problems is empty; accepted: 1 or more");
  BackwardPlan plan;
  plan.device_ = device;
  plan.group_ = GroupOf(problems[0], device, options);
  plan.num_problems_ = static_cast<int>(problems.size());
  for (const AttentionProblem& problem : problems) {
    absl::Status served = CheckServed(problem);
    if (!served.ok()) return served;
    if (problem.direction != Direction::kBackward) {
      return absl::InvalidArgumentError("direction is forward; accepted: backward");
    }
    if (GroupOf(problem, device, options) != plan.group_) {
      return absl::InvalidArgumentError(
          "problems differ in dtype, padded head_dim, kind of bias, whether dslopes are wanted, or "
          "kernel family; accepted: one of each");
    }
    plan.AddProblem(problem, options);
  }
  plan.MakeItems();
  plan.MakeRowsJobs();
  plan.MakeLayout();
  return plan;
}

int BackwardPlan::KvItemKeys() const {
  return family() == KernelFamily::kHopper ? hopper::KvItemKeys(group_.padded_head_dim)
                                           : portable::kKvItemKeys;
}

int BackwardPlan::QItemRows() const {
  return family() == KernelFamily::kHopper ? hopper::QItemRows(group_.padded_head_dim)
                                           : portable::kQItemRows;
}

void BackwardPlan::AddProblem(const AttentionProblem& problem, const PlanOptions& options) {
  const size_t first_sequence = sequences_.size();
  table_.Add(problem, options.skipping, kScoreWork);
  const Gradients& gradients = problem.gradients;
  const size_t element = SizeOf(problem.dtype);
  const int64_t q_row = int64_t{problem.num_q_heads} * problem.head_dim;
  const int64_t kv_row = int64_t{problem.num_kv_heads} * problem.head_dim;
  const bool low_rank = problem.bias_kind == BiasKind::kLowRank;
  const int64_t phi_row = int64_t{problem.num_q_heads} * problem.low_rank.rank;
  for (const Sequence& sequence : problem.sequences) {
    const auto output = [&](void* tensor, int64_t elements) {
      return Advance(static_cast<char*>(tensor), elements * static_cast<int64_t>(element));
    };
    const int64_t row_stride = BackwardRowStride(sequence.q_len);
    BackwardSequence s{};
    s.o = output(problem.o, sequence.q_begin * q_row);
    s.dq = output(gradients.dq, sequence.q_begin * q_row);
    s.dk = output(gradients.dk, sequence.kv_begin * kv_row);
    s.dv = output(gradients.dv, sequence.kv_begin * kv_row);
    s.row_stride = static_cast<int32_t>(row_stride);
    if (low_rank) {  // where heads share a factor, AddDPhi puts partial gradients in their place
      s.dphi_q = Advance(gradients.dphi_q, sequence.q_begin * phi_row);
      s.dphi_k = Advance(gradients.dphi_k, sequence.kv_begin * phi_row);
    }

    Places places;
    places.rows = num_rows_;
    num_rows_ += problem.num_q_heads * row_stride;
    if (table_.has_key_norms(sequences_.size())) {
      places.limits = num_limits_;
      num_limits_ += problem.num_q_heads * (row_stride / kLimitRows);
      places.reach = num_reach_;
      num_reach_ += 2 * int64_t{problem.num_q_heads};
    }
    if (problem.dtype == DType::kFloat16) {
      places.magnitudes = num_magnitudes_;
      num_magnitudes_ += 2 * int64_t{problem.num_kv_heads};
    }
    sequences_.push_back(s);
    places_.push_back(places);
  }
  if (group_.dslopes) AddDSlopes(problem, first_sequence);
  if (low_rank) AddDPhi(problem, first_sequence);
}

void BackwardPlan::AddDSlopes(const AttentionProblem& problem, size_t first_sequence) {
  const int64_t heads = problem.num_q_heads;
  // Slopes of `terms` items of each head, [heads, terms].
  const auto add = [&](float* to, int64_t terms) {
    return AddSum({.to = to,
                   .count = heads,
                   .inner = 1,
                   .outer_stride = terms,
                   .terms = terms,
                   .term_stride = 1,
                   .factor = -1},
                  heads * terms);
  };
  const auto items_of = [&](const Sequence& sequence) {
    return CeilDiv<int64_t>(sequence.q_len, QItemRows());
  };
  int64_t begin = 0;
  int64_t stride = 0;
  if (!problem.alibi.per_sequence) {
    for (const Sequence& sequence : problem.sequences) stride += items_of(sequence);
    begin = add(problem.gradients.dslopes, stride);
  }
  for (size_t n = 0; n < problem.sequences.size(); ++n) {
    const int64_t items = items_of(problem.sequences[n]);
    if (problem.alibi.per_sequence) {
      stride = items;
      begin = add(problem.gradients.dslopes + static_cast<int64_t>(n) * heads, stride);
    }
    places_[first_sequence + n].dslopes = begin;
    sequences_[first_sequence + n].dslope_stride = stride;
    begin += items;
  }
}

void BackwardPlan::AddDPhi(const AttentionProblem& problem, size_t first_sequence) {
  const int64_t heads = problem.num_q_heads;
  const int64_t rank = problem.low_rank.rank;
  // The sum over the heads of [rows, heads, rank].
  const auto add = [&](float* to, int64_t rows) {
    return AddSum({.to = to,
                   .count = rows * rank,
                   .inner = rank,
                   .outer_stride = heads * rank,
                   .terms = heads,
                   .term_stride = rank,
                   .factor = 1},
                  rows * heads * rank);
  };
  const Gradients& gradients = problem.gradients;
  const auto shared = [heads](const float* gradient, int phi_heads) {
    return gradient != nullptr && phi_heads < heads;
  };
  if (shared(gradients.dphi_q, problem.low_rank.phi_q_heads)) {
    const int64_t begin = add(gradients.dphi_q, problem.total_q);
    for (size_t n = 0; n < problem.sequences.size(); ++n) {
      places_[first_sequence + n].dphi_q = begin + problem.sequences[n].q_begin * heads * rank;
    }
  }
  if (shared(gradients.dphi_k, problem.low_rank.phi_k_heads)) {
    const int64_t begin = add(gradients.dphi_k, problem.total_kv);
    for (size_t n = 0; n < problem.sequences.size(); ++n) {
      places_[first_sequence + n].dphi_k = begin + problem.sequences[n].kv_begin * heads * rank;
    }
  }
}

int64_t BackwardPlan::AddSum(const SumJob& job, int64_t partials) {
  const int64_t begin = num_partials_;
  num_partials_ += partials;
  if (job.count > 0) {
    sum_jobs_.push_back(job);
    sum_places_.push_back(begin);
  }
  return begin;
}

// An item of whatever has rows of its own: what sees nothing gets gradients of zero.
void BackwardPlan::MakeItems() {
  std::vector<WorkItem> items;
  std::vector<int32_t> costs;
  std::vector<double> reaches;  // of the sequence's heads
  std::vector<WorkItem> kv_items;
  std::vector<int32_t> kv_costs;
  for (size_t n = 0; n < table_.size(); ++n) {
    const SequenceParams& s = table_.params()[n];
    if (s.q_len == 0 && s.kv_len == 0) continue;  // there may be tens of thousands
    const float* const slopes = table_.host_slopes(n);
    reaches.clear();
    for (int head = 0; head < s.num_q_heads; ++head) {
      reaches.push_back(ReachOfHead(s, slopes == nullptr ? 0 : slopes[head]));
      for (int32_t q = 0; q < s.q_len; q += QItemRows()) {
        const int64_t q_end = std::min<int64_t>(int64_t{q} + QItemRows(), s.q_len);
        items.push_back({static_cast<int32_t>(n), q, head, 0});
        costs.push_back(ToCost(ExpectedKeysOfRows(s, q, q_end, reaches[head])));
      }
    }
    const int group = s.num_q_heads / s.num_kv_heads;
    for (int kv_head = 0; kv_head < s.num_kv_heads; ++kv_head) {
      for (int32_t k = 0; k < s.kv_len; k += KvItemKeys()) {
        const int64_t k_end = std::min<int64_t>(int64_t{k} + KvItemKeys(), s.kv_len);
        double rows = 0;
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          rows += ExpectedRowsOfKeys(s, k, k_end, reaches[head]);
        }
        kv_items.push_back({static_cast<int32_t>(n), k, kv_head, 0});
        kv_costs.push_back(ToCost(rows));
      }
    }
  }
  q_items_ = LongestFirst(items, costs);
  kv_items_ = LongestFirst(kv_items, kv_costs);
}

void BackwardPlan::MakeRowsJobs() {
  for (size_t n = 0; n < table_.size(); ++n) {
    const SequenceParams& s = table_.params()[n];
    if (s.q_len == 0) continue;
    rows_jobs_.push_back({.sequence = static_cast<int32_t>(n),
                          .first_block = rows_blocks_,
                          .slice_heads = KeyNormSliceHeads(s.head_dim)});
    rows_blocks_ += BackwardRowsBlocks(s, group_.dtype);
  }
}

void BackwardPlan::MakeLayout() {
  WorkspaceLayout layout;
  layout_.next_item = layout.Place<unsigned>(4);
  layout_.tile_counts = layout.Place<TileCounts>(num_problems_);
  layout_.reach = layout.Place<int32_t>(num_reach_);
  layout_.magnitudes = layout.Place<uint32_t>(num_magnitudes_);
  layout_.sequences = layout.Place(sequences_);
  layout_.tensor_maps = layout.Place<hopper::BackwardTensorMaps>(
      family() == KernelFamily::kHopper ? sequences_.size() : 0);
  layout_.kv_items = layout.Place(kv_items_);
  layout_.q_items = layout.Place(q_items_);
  layout_.rows_jobs = layout.Place(rows_jobs_);
  layout_.sum_jobs = layout.Place(sum_jobs_);
  table_.PlaceUploads(&layout);
  layout_.end_of_upload = layout.end();
  table_.PlaceScratch(&layout);
  layout_.rows = layout.Place<RowStats>(num_rows_);
  layout_.limits = layout.Place<KeyLimits>(num_limits_);
  layout_.partials = layout.Place<float>(num_partials_);
  layout_.end = layout.end();
}

absl::Status BackwardPlan::Bind(void* staging, void* workspace) {
  staging_ = staging;
  workspace_ = workspace;
  std::memset(staging, 0, layout_.end_of_upload);
  table_.Bind(staging, workspace);

  auto* const partials = ArrayAt<float>(workspace, layout_.partials);
  for (size_t n = 0; n < sequences_.size(); ++n) {
    BackwardSequence& s = sequences_[n];
    const Places& places = places_[n];
    s.forward = table_.params()[n];
    s.d_o = table_.d_o(n);
    s.rows = ArrayAt<RowStats>(workspace, layout_.rows) + places.rows;
    if (places.limits != kNone) {
      s.limits = ArrayAt<KeyLimits>(workspace, layout_.limits) + places.limits;
      s.reach = ArrayAt<int32_t>(workspace, layout_.reach) + places.reach;
    }
    if (places.magnitudes != kNone) {
      s.magnitudes = ArrayAt<uint32_t>(workspace, layout_.magnitudes) + places.magnitudes;
    }
    if (places.dslopes != kNone) s.dslope_partials = partials + places.dslopes;
    if (places.dphi_q != kNone) s.dphi_q = partials + places.dphi_q;
    if (places.dphi_k != kNone) s.dphi_k = partials + places.dphi_k;
  }
  for (size_t n = 0; n < sum_jobs_.size(); ++n) sum_jobs_[n].from = partials + sum_places_[n];

  CopyArray(sequences_, staging, layout_.sequences);
  CopyArray(kv_items_, staging, layout_.kv_items);
  CopyArray(q_items_, staging, layout_.q_items);
  CopyArray(rows_jobs_, staging, layout_.rows_jobs);
  CopyArray(sum_jobs_, staging, layout_.sum_jobs);

  params_ = {.sequences = ArrayAt<const BackwardSequence>(workspace, layout_.sequences),
             .kv_items = ArrayAt<const WorkItem>(workspace, layout_.kv_items),
             .q_items = ArrayAt<const WorkItem>(workspace, layout_.q_items),
             .next_item = ArrayAt<unsigned>(workspace, layout_.next_item),
             .tile_counts = ArrayAt<TileCounts>(workspace, layout_.tile_counts),
             .num_kv_items = static_cast<int32_t>(kv_items_.size()),
             .num_q_items = static_cast<int32_t>(q_items_.size()),
             .num_sequences = static_cast<int32_t>(sequences_.size())};
  rows_params_ = {.jobs = ArrayAt<const RowsJob>(workspace, layout_.rows_jobs),
                  .num_jobs = static_cast<int32_t>(rows_jobs_.size()),
                  .num_blocks = rows_blocks_};
  sum_params_ = {.jobs = ArrayAt<const SumJob>(workspace, layout_.sum_jobs),
                 .num_jobs = static_cast<int32_t>(sum_jobs_.size())};
  if (family() != KernelFamily::kHopper) return absl::OkStatus();
  params_.tensor_maps = ArrayAt<char>(workspace, layout_.tensor_maps);
  auto* const maps = ArrayAt<hopper::BackwardTensorMaps>(staging, layout_.tensor_maps);
  for (size_t n = 0; n < sequences_.size(); ++n) {
    absl::Status status =
        hopper::EncodeBackwardMaps(sequences_[n], group_.dtype, group_.padded_head_dim, &maps[n]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace flashbias::cuda
