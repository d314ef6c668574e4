#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/cuda/hopper/tensor_maps.h"
#include "kernels/cuda/portable/portable_attention.h"
#include "kernels/skip_table.h"
#include "kernels/work_estimate.h"

namespace flashbias::cuda {
namespace {

constexpr int64_t kMaxRows = kMaxSequenceRows;
constexpr size_t kAlignment = 256;

// Score elements that an H200 computes while the pass over the keys is launched, and while it reads
// a byte of them. Measured at 1024 tokens of 50 heads, where the pass costs 6.5 us, the time
// of 1.6e7 elements.
constexpr double kElementsPerKeyPass = 1.2e7;
constexpr double kElementsPerKeyByte = 1.0;

// Up to so many query rows, heads of one key/value head share a tile.
constexpr int kMaxRowsToShareTiles = 16;

int PaddedHeadDim(int head_dim) { return head_dim <= 32 ? 32 : (head_dim <= 64 ? 64 : 128); }

int32_t RoundUpTo8(int n) { return (n + 7) / 8 * 8; }

template <typename T>
T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

bool IsAligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool NeedsPacking(const AttentionProblem& p) {
  return p.head_dim % 8 != 0 || !IsAligned(p.q) || !IsAligned(p.k) || !IsAligned(p.v);
}

int32_t Clamp(int64_t value, int64_t limit) {
  return static_cast<int32_t>(std::clamp(value, -limit, limit));
}

const void* AtElement(const void* base, int64_t element, size_t element_bytes) {
  return static_cast<const char*>(base) + element * static_cast<int64_t>(element_bytes);
}

bool HasAlibi(const AttentionProblem& p) { return p.bias_kind == BiasKind::kAlibi; }

// Heads whose far keys can be skipped at all.
bool AnySlopeSkips(const float* slopes, int num_heads) {
  return std::any_of(slopes, slopes + num_heads,
                     [](float slope) { return slope > 0 && std::isfinite(slope); });
}

// Score elements that skipping is expected to save in one sequence.
double ExpectedSaving(const AttentionProblem& problem, int64_t sequence) {
  AttentionProblem dense = problem;
  dense.eps = 0;
  constexpr int64_t kSamples = 4;
  const int64_t q_len = problem.sequences[sequence].q_len;
  double saved = 0;
  for (int64_t k = 0; k < kSamples; ++k) {
    const int64_t row = (2 * k + 1) * q_len / (2 * kSamples);
    for (int head = 0; head < problem.num_q_heads; ++head) {
      saved +=
          ExpectedKeys(dense, sequence, head, row) - ExpectedKeys(problem, sequence, head, row);
    }
  }
  return saved * static_cast<double>(q_len) / kSamples;
}

bool SkippingPays(const AttentionProblem& problem, int64_t sequence) {
  const Sequence& s = problem.sequences[sequence];
  const double most = static_cast<double>(s.q_len) * s.kv_len * problem.num_q_heads;
  if (most <= kElementsPerKeyPass) return false;
  const auto key_bytes =
      static_cast<double>(s.kv_len) * problem.num_kv_heads * problem.head_dim * 2;
  return ExpectedSaving(problem, sequence) > kElementsPerKeyPass + kElementsPerKeyByte * key_bytes;
}

bool HopperServes(const AttentionProblem& p) {
  if (p.bias_kind == BiasKind::kLowRank) return false;
  // Both the scale in base 2 and its inverse are used.
  if (!(p.softmax_scale > 0) || !std::isfinite(1.0f / p.softmax_scale) ||
      !std::isfinite(2 * p.softmax_scale)) {
    return false;
  }
  if (!HasAlibi(p)) return true;
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

// The keys that any row of the tile may see.
KeyRange KeysOfTile(const SequenceParams& s, int64_t q_begin, int64_t q_end) {
  KeyRange keys{.begin = std::max<int64_t>(0, q_begin + s.window_diagonal),
                .end = s.causal != 0 ? std::min<int64_t>(s.kv_len, q_end + s.diagonal) : s.kv_len};
  if (keys.begin >= keys.end) return KeyRange{};
  return keys;
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
    if (problem.dtype == DType::kFloat32) {
      return absl::InvalidArgumentError(
          "dtype is float32; accepted on a GPU: float16 and bfloat16");
    }
    if (GroupOf(problem, device, options) != plan.group_) {
      return absl::InvalidArgumentError(
          "problems differ in dtype, padded head_dim, kind of bias or kernel family; "
          "accepted: one of each");
    }
    for (const Sequence& sequence : problem.sequences) {
      if (sequence.q_len > kMaxRows || sequence.kv_len > kMaxRows) {
        return absl::InvalidArgumentError(absl::StrCat("a sequence has ", sequence.q_len,
                                                       " queries and ", sequence.kv_len,
                                                       " keys; accepted: up to ", kMaxRows));
      }
    }
  }
  for (int n = 0; n < plan.num_problems_; ++n) plan.AddProblem(problems[n], n, options);
  if (plan.family() == KernelFamily::kPortable) plan.ChooseSplits();
  plan.MakeItems(problems);
  plan.MakeLayout();
  return plan;
}

void AttentionPlan::AddProblem(const AttentionProblem& problem, int index,
                               const PlanOptions& options) {
  const size_t first_sequence = sequences_.size();
  const size_t element = SizeOf(problem.dtype);
  const bool packs = NeedsPacking(problem);
  const int head_stride = packs ? RoundUpTo8(problem.head_dim) : problem.head_dim;
  const auto slopes_begin = static_cast<int64_t>(slopes_.size());
  if (HasAlibi(problem)) {
    const size_t count =
        problem.num_q_heads * (problem.alibi.per_sequence ? problem.sequences.size() : 1);
    slopes_.insert(slopes_.end(), problem.alibi.slopes, problem.alibi.slopes + count);
  }
  const int group = problem.num_q_heads / problem.num_kv_heads;

  for (int64_t n = 0; n < static_cast<int64_t>(problem.sequences.size()); ++n) {
    const Sequence& sequence = problem.sequences[n];
    SequenceParams s{};
    Unbound unbound;
    const auto at = [&](const void* base, int64_t row, int64_t row_elements, size_t bytes) {
      return AtElement(base, row * row_elements, bytes);
    };
    const int64_t q_row = int64_t{problem.num_q_heads} * problem.head_dim;
    const int64_t kv_row = int64_t{problem.num_kv_heads} * problem.head_dim;
    s.q = at(problem.q, sequence.q_begin, q_row, element);
    s.k = at(problem.k, sequence.kv_begin, kv_row, element);
    s.v = at(problem.v, sequence.kv_begin, kv_row, element);
    s.o = const_cast<void*>(at(problem.o, sequence.q_begin, q_row, element));
    if (problem.lse != nullptr) {
      s.lse = problem.lse + sequence.q_begin * problem.num_q_heads;
    }
    s.exact_diagonal = sequence.query_start - sequence.key_start;
    s.diagonal = Clamp(s.exact_diagonal, kMaxRows);
    s.window_diagonal = kNoWindow;
    if (HasLeftWindow(problem.mask)) {
      s.window_diagonal = Clamp(s.exact_diagonal - problem.mask.left_window + 1, kMaxRows);
    }
    s.causal = problem.mask.causal ? 1 : 0;
    s.q_len = static_cast<int32_t>(sequence.q_len);
    s.kv_len = static_cast<int32_t>(sequence.kv_len);
    s.num_q_heads = problem.num_q_heads;
    s.num_kv_heads = problem.num_kv_heads;
    s.head_dim = problem.head_dim;
    s.q_head_stride = s.kv_head_stride = head_stride;
    s.problem = index;
    s.softmax_scale = problem.softmax_scale;
    s.norm_tiles = CeilDiv(s.kv_len, kNormTileKeys);
    s.num_splits = 1;
    s.keys_per_split = s.kv_len;
    s.heads_per_tile = 1;
    s.log_eps_per_side = -std::numeric_limits<float>::infinity();

    if (HasAlibi(problem)) {
      unbound.slopes = slopes_begin + (problem.alibi.per_sequence ? n * problem.num_q_heads : 0);
      const bool may_skip = problem.eps > 0 && sequence.q_len > 0 && sequence.kv_len > 0 &&
                            AnySlopeSkips(SlopesOf(problem, n), problem.num_q_heads);
      if (may_skip && (options.skipping == PlanOptions::Skipping::kWhereverPossible ||
                       SkippingPays(problem, n))) {
        // A row sees keys on both sides only without a causal mask.
        const float share = problem.mask.causal ? problem.eps : problem.eps / 2;
        s.log_eps_per_side = std::log(share);
        unbound.key_norms = key_norm_floats_;
        key_norm_floats_ += 2 * int64_t{s.num_kv_heads} * s.norm_tiles;
        key_norm_sequences_.push_back(static_cast<int>(sequences_.size()));
        key_norm_jobs_.push_back({.kv_len = s.kv_len,
                                  .num_kv_heads = s.num_kv_heads,
                                  .head_dim = s.head_dim,
                                  .head_stride = s.kv_head_stride,
                                  .norm_tiles = s.norm_tiles,
                                  .slice_heads = KeyNormSliceHeads(s.head_dim),
                                  .first_block = key_norm_blocks_});
        const int32_t slices = CeilDiv(s.num_kv_heads, KeyNormSliceHeads(s.head_dim));
        key_norm_counters_.push_back(num_key_norm_counters_);
        num_key_norm_counters_ += slices;
        key_norm_blocks_ += s.norm_tiles * slices;
      }
    } else if (problem.bias_kind == BiasKind::kLowRank) {
      const LowRankBias& bias = problem.low_rank;
      const size_t factor = SizeOf(bias.dtype);
      s.phi_q = at(bias.phi_q, sequence.q_begin, int64_t{bias.phi_q_heads} * bias.rank, factor);
      s.phi_k = at(bias.phi_k, sequence.kv_begin, int64_t{bias.phi_k_heads} * bias.rank, factor);
      s.phi_q_heads = bias.phi_q_heads;
      s.phi_k_heads = bias.phi_k_heads;
      s.rank = bias.rank;
      s.phi_dtype = static_cast<int32_t>(bias.dtype);
    }
    // A tile of several heads has one set of factors.
    const bool shares = family() == KernelFamily::kPortable && s.phi_k_heads <= 1;
    if (shares && group > 1 && s.q_len <= kMaxRowsToShareTiles) {
      for (int heads = group; heads > 1; --heads) {
        if (group % heads == 0 && heads * s.q_len <= portable::kQueryTileRows) {
          s.heads_per_tile = heads;
          break;
        }
      }
    }
    sequences_.push_back(s);
    unbound_.push_back(unbound);
  }
  if (packs) AddPacking(problem, first_sequence);
}

void AttentionPlan::AddPacking(const AttentionProblem& problem, size_t first_sequence) {
  const int64_t padded = RoundUpTo8(problem.head_dim);
  const auto add = [&](const void* from, int64_t vectors) {
    const int64_t offset = packed_bytes_;
    pack_jobs_.push_back({.from = from,
                          .num_vectors = vectors,
                          .head_dim = problem.head_dim,
                          .padded_dim = static_cast<int32_t>(padded)});
    pack_offsets_.push_back(offset);
    packed_bytes_ = CeilDiv<int64_t>(offset + vectors * padded * 2, kAlignment) * kAlignment;
    return offset;
  };
  const int64_t q = add(problem.q, problem.total_q * problem.num_q_heads);
  const int64_t k = add(problem.k, problem.total_kv * problem.num_kv_heads);
  const int64_t v = add(problem.v, problem.total_kv * problem.num_kv_heads);
  for (size_t n = 0; n < problem.sequences.size(); ++n) {
    const Sequence& sequence = problem.sequences[n];
    Unbound& unbound = unbound_[first_sequence + n];
    const int64_t kv_offset = sequence.kv_begin * problem.num_kv_heads * padded * 2;
    unbound.packed_q = q + sequence.q_begin * problem.num_q_heads * padded * 2;
    unbound.packed_k = k + kv_offset;
    unbound.packed_v = v + kv_offset;
  }
}

int AttentionPlan::QueryTileRows() const {
  return family() == KernelFamily::kHopper ? hopper::QueryTileRows(group_.padded_head_dim)
                                           : portable::kQueryTileRows;
}

int AttentionPlan::KeyTileKeys() const {
  return family() == KernelFamily::kHopper ? hopper::kKeyTileKeys : portable::kKeyTileKeys;
}

// Cuts the keys of sequences whose query tiles alone leave multiprocessors idle. Each sequence is
// looked at for itself, so that a neighbour changes no result.
void AttentionPlan::ChooseSplits() {
  for (SequenceParams& s : sequences_) {
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
void AttentionPlan::MakeItems(absl::Span<const AttentionProblem> problems) {
  std::vector<WorkItem> unordered;
  std::vector<int32_t> costs;
  int32_t highest = 0;
  size_t n = 0;
  for (const AttentionProblem& problem : problems) {
    for (int64_t local = 0; local < static_cast<int64_t>(problem.sequences.size()); ++local, ++n) {
      const SequenceParams& s = sequences_[n];
      if (s.q_len == 0) continue;  // there may be tens of thousands, of as many heads
      const int rows_per_tile = QueryTileRows() / s.heads_per_tile;
      for (int head = 0; head < s.num_q_heads; head += s.heads_per_tile) {
        // Each side's reach of one row, in keys; the tile's rows add their own extent.
        double reach = std::numeric_limits<double>::infinity();
        if (s.log_eps_per_side > -reach) {
          reach = ExpectedReach(SlopesOf(problem, local)[head], s.log_eps_per_side);
        }
        for (int32_t q = 0; q < s.q_len; q += rows_per_tile) {
          const int64_t q_end = std::min<int64_t>(int64_t{q} + rows_per_tile, s.q_len);
          const KeyRange keys = KeysOfTile(s, q, q_end);
          const double sides = s.causal != 0 ? 1 : 2;
          const double expected = std::min(static_cast<double>(keys.end - keys.begin),
                                           static_cast<double>(q_end - q) + sides * reach) /
                                  s.num_splits;
          const auto cost = static_cast<int32_t>(expected / KeyTileKeys());
          highest = std::max(highest, cost);
          for (int split = 0; split < s.num_splits; ++split) {
            unordered.push_back({static_cast<int32_t>(n), q, head, split});
            costs.push_back(cost);
          }
        }
      }
    }
  }
  // A counting sort: there may be tens of thousands of items, and few different costs.
  std::vector<int32_t> begin(static_cast<size_t>(highest) + 2);
  for (const int32_t cost : costs) ++begin[highest - cost + 1];
  for (size_t k = 1; k < begin.size(); ++k) begin[k] += begin[k - 1];
  items_.resize(unordered.size());
  for (size_t k = 0; k < unordered.size(); ++k) items_[begin[highest - costs[k]]++] = unordered[k];
}

void AttentionPlan::MakeLayout() {
  size_t at = 0;
  const auto place = [&at](size_t bytes) {
    const size_t begin = at;
    at = CeilDiv(at + bytes, kAlignment) * kAlignment;
    return begin;
  };
  layout_.next_item = place(2 * sizeof(unsigned));
  layout_.done_blocks = place(num_key_norm_counters_ * sizeof(unsigned));
  layout_.tile_counts = place(num_problems_ * sizeof(TileCounts));
  layout_.sequences = place(sequences_.size() * sizeof(SequenceParams));
  layout_.tensor_maps = place(family() == KernelFamily::kHopper
                                  ? sequences_.size() * sizeof(hopper::SequenceTensorMaps)
                                  : 0);
  layout_.items = place(items_.size() * sizeof(WorkItem));
  layout_.slopes = place(slopes_.size() * sizeof(float));
  layout_.key_norm_jobs = place(key_norm_jobs_.size() * sizeof(KeyNormJob));
  layout_.pack_jobs = place(pack_jobs_.size() * sizeof(PackJob));
  layout_.end_of_upload = at;
  layout_.key_norms = place(key_norm_floats_ * sizeof(float));
  layout_.packed = place(packed_bytes_);
  layout_.partial_o = place(partial_rows_ * group_.padded_head_dim * sizeof(float));
  layout_.partial_lse = place(partial_rows_ * sizeof(float));
  layout_.end = at;
}

absl::Status AttentionPlan::Bind(void* staging, void* workspace) {
  staging_ = staging;
  workspace_ = workspace;
  char* const host = static_cast<char*>(staging);
  char* const device = static_cast<char*>(workspace);
  std::memset(host, 0, layout_.end_of_upload);

  auto* const floats = reinterpret_cast<float*>(device + layout_.key_norms);
  for (size_t n = 0; n < sequences_.size(); ++n) {
    SequenceParams& s = sequences_[n];
    const Unbound& unbound = unbound_[n];
    char* const packed = device + layout_.packed;
    if (unbound.packed_q != kNone) {
      s.q = packed + unbound.packed_q;
      s.k = packed + unbound.packed_k;
      s.v = packed + unbound.packed_v;
    }
    if (unbound.slopes != kNone) {
      s.slopes = reinterpret_cast<const float*>(device + layout_.slopes) + unbound.slopes;
    }
    if (unbound.key_norms != kNone) s.key_norms = floats + unbound.key_norms;
  }
  for (size_t n = 0; n < key_norm_jobs_.size(); ++n) {
    const int sequence = key_norm_sequences_[n];
    key_norm_jobs_[n].k = sequences_[sequence].k;
    key_norm_jobs_[n].key_norms = floats + unbound_[sequence].key_norms;
    key_norm_jobs_[n].done_blocks =
        reinterpret_cast<unsigned*>(device + layout_.done_blocks) + key_norm_counters_[n];
  }
  for (size_t n = 0; n < pack_jobs_.size(); ++n) {
    pack_jobs_[n].to = device + layout_.packed + pack_offsets_[n];
  }

  const auto copy = [host](size_t offset, const auto& values) {
    if (!values.empty())
      std::memcpy(host + offset, values.data(), values.size() * sizeof(values[0]));
  };
  copy(layout_.sequences, sequences_);
  copy(layout_.items, items_);
  copy(layout_.slopes, slopes_);
  copy(layout_.key_norm_jobs, key_norm_jobs_);
  copy(layout_.pack_jobs, pack_jobs_);

  params_ = {.sequences = reinterpret_cast<const SequenceParams*>(device + layout_.sequences),
             .items = reinterpret_cast<const WorkItem*>(device + layout_.items),
             .next_item = reinterpret_cast<unsigned*>(device + layout_.next_item),
             .tile_counts = reinterpret_cast<TileCounts*>(device + layout_.tile_counts),
             .partial_o = reinterpret_cast<float*>(device + layout_.partial_o),
             .partial_lse = reinterpret_cast<float*>(device + layout_.partial_lse),
             .num_items = static_cast<int32_t>(items_.size()),
             .num_sequences = static_cast<int32_t>(sequences_.size())};
  key_norm_params_ = {.jobs = reinterpret_cast<const KeyNormJob*>(device + layout_.key_norm_jobs),
                      .num_jobs = static_cast<int32_t>(key_norm_jobs_.size()),
                      .num_blocks = key_norm_blocks_,
                      .only = key_norm_jobs_.size() == 1 ? key_norm_jobs_[0] : KeyNormJob{}};
  pack_params_ = {.jobs = reinterpret_cast<const PackJob*>(device + layout_.pack_jobs),
                  .num_jobs = static_cast<int32_t>(pack_jobs_.size())};
  if (family() == KernelFamily::kHopper) {
    params_.tensor_maps = device + layout_.tensor_maps;
    auto* const maps = reinterpret_cast<hopper::SequenceTensorMaps*>(host + layout_.tensor_maps);
    for (size_t n = 0; n < sequences_.size(); ++n) {
      absl::Status status =
          hopper::EncodeTensorMaps(sequences_[n], group_.dtype, group_.padded_head_dim, &maps[n]);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

hopper::HostPlan AttentionPlan::hopper_plan() const {
  const char* const host = static_cast<const char*>(staging_);
  return {.params = params_,
          .sequences = sequences_.data(),
          .tensor_maps =
              reinterpret_cast<const hopper::SequenceTensorMaps*>(host + layout_.tensor_maps),
          .items = items_.data(),
          .slopes = unbound_.empty() || unbound_[0].slopes == kNone
                        ? nullptr
                        : slopes_.data() + unbound_[0].slopes,
          .after_key_norms = key_norm_blocks_ > 0};
}

}  // namespace flashbias::cuda
