#include "kernels/cuda/sequence_table.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/ceil_div.h"
#include "kernels/work_estimate.h"

namespace flashbias::cuda {
namespace {

// Score elements of the forward pass that an H200 computes while the pass over the keys is
// launched, and while it reads a byte of them. Measured at 1024 tokens of 50 heads, where the pass
// costs 6.5 us, the time of 1.6e7 elements.
constexpr double kElementsPerKeyPass = 1.2e7;
constexpr double kElementsPerKeyByte = 1.0;

int32_t RoundUpTo8(int n) { return (n + 7) / 8 * 8; }

bool IsBackward(const AttentionProblem& p) { return p.direction == Direction::kBackward; }

bool IsAligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool NeedsPacking(const AttentionProblem& p) {
  return p.head_dim % 8 != 0 || !IsAligned(p.q) || !IsAligned(p.k) || !IsAligned(p.v) ||
         (IsBackward(p) && !IsAligned(p.gradients.d_o));
}

int32_t Clamp(int64_t value, int64_t limit) {
  return static_cast<int32_t>(std::clamp(value, -limit, limit));
}

const void* AtElement(const void* base, int64_t element, size_t element_bytes) {
  return static_cast<const char*>(base) + element * static_cast<int64_t>(element_bytes);
}

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

bool SkippingPays(const AttentionProblem& problem, int64_t sequence, double score_work) {
  const Sequence& s = problem.sequences[sequence];
  const double most = static_cast<double>(s.q_len) * s.kv_len * problem.num_q_heads;
  if (score_work * most <= kElementsPerKeyPass) return false;
  const auto key_bytes =
      static_cast<double>(s.kv_len) * problem.num_kv_heads * problem.head_dim * 2;
  return score_work * ExpectedSaving(problem, sequence) >
         kElementsPerKeyPass + kElementsPerKeyByte * key_bytes;
}

}  // namespace

absl::Status CheckServed(const AttentionProblem& problem) {
  if (problem.dtype == DType::kFloat32) {
    return absl::InvalidArgumentError("dtype is float32; accepted on a GPU: float16 and bfloat16");
  }
  for (const Sequence& sequence : problem.sequences) {
    if (sequence.q_len > kMaxSequenceRows || sequence.kv_len > kMaxSequenceRows) {
      return absl::InvalidArgumentError(absl::StrCat("a sequence has ", sequence.q_len,
                                                     " queries and ", sequence.kv_len,
                                                     " keys; accepted: up to ", kMaxSequenceRows));
    }
  }
  return absl::OkStatus();
}

void SequenceTable::Add(const AttentionProblem& problem, PlanOptions::Skipping skipping,
                        double score_work) {
  const size_t first_sequence = sequences_.size();
  const size_t element = SizeOf(problem.dtype);
  const bool packs = NeedsPacking(problem);
  const int head_stride = packs ? RoundUpTo8(problem.head_dim) : problem.head_dim;
  const bool has_alibi = problem.bias_kind == BiasKind::kAlibi;
  const auto slopes_begin = static_cast<int64_t>(slopes_.size());
  if (has_alibi) {
    const size_t count =
        problem.num_q_heads * (problem.alibi.per_sequence ? problem.sequences.size() : 1);
    slopes_.insert(slopes_.end(), problem.alibi.slopes, problem.alibi.slopes + count);
  }

  for (int64_t n = 0; n < static_cast<int64_t>(problem.sequences.size()); ++n) {
    const Sequence& sequence = problem.sequences[n];
    SequenceParams s{};
    Places places;
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
    s.diagonal = Clamp(s.exact_diagonal, kMaxSequenceRows);
    s.window_diagonal = kNoWindow;
    if (HasLeftWindow(problem.mask)) {
      s.window_diagonal = Clamp(s.exact_diagonal - problem.mask.left_window + 1, kMaxSequenceRows);
    }
    s.causal = problem.mask.causal ? 1 : 0;
    s.q_len = static_cast<int32_t>(sequence.q_len);
    s.kv_len = static_cast<int32_t>(sequence.kv_len);
    s.num_q_heads = problem.num_q_heads;
    s.num_kv_heads = problem.num_kv_heads;
    s.head_dim = problem.head_dim;
    s.q_head_stride = s.kv_head_stride = head_stride;
    s.problem = num_problems_;
    s.softmax_scale = problem.softmax_scale;
    s.norm_tiles = CeilDiv(s.kv_len, kNormTileKeys);
    s.num_splits = 1;
    s.keys_per_split = s.kv_len;
    s.heads_per_tile = 1;
    s.log_eps_per_side = -std::numeric_limits<float>::infinity();
    if (problem.bias_kind == BiasKind::kLowRank) {
      const LowRankBias& bias = problem.low_rank;
      const size_t factor = SizeOf(bias.dtype);
      s.phi_q = at(bias.phi_q, sequence.q_begin, int64_t{bias.phi_q_heads} * bias.rank, factor);
      s.phi_k = at(bias.phi_k, sequence.kv_begin, int64_t{bias.phi_k_heads} * bias.rank, factor);
      s.phi_q_heads = bias.phi_q_heads;
      s.phi_k_heads = bias.phi_k_heads;
      s.rank = bias.rank;
      s.phi_dtype = static_cast<int32_t>(bias.dtype);
    }
    if (has_alibi) {
      places.slopes = slopes_begin + (problem.alibi.per_sequence ? n * problem.num_q_heads : 0);
    }
    sequences_.push_back(s);
    places_.push_back(places);
    d_o_.push_back(IsBackward(problem) ? at(problem.gradients.d_o, sequence.q_begin, q_row, element)
                                       : nullptr);

    const bool may_skip = has_alibi && problem.eps > 0 && sequence.q_len > 0 &&
                          sequence.kv_len > 0 &&
                          AnySlopeSkips(SlopesOf(problem, n), problem.num_q_heads);
    if (may_skip && (skipping == PlanOptions::Skipping::kWhereverPossible ||
                     SkippingPays(problem, n, score_work))) {
      // A row sees keys on both sides only without a causal mask.
      AddKeyNorms(problem.mask.causal ? problem.eps : problem.eps / 2);
    }
  }
  if (packs) AddPacking(problem, first_sequence);
  ++num_problems_;
}

// Of the last sequence; `eps` is that of a side.
void SequenceTable::AddKeyNorms(float eps) {
  SequenceParams& s = sequences_.back();
  s.log_eps_per_side = std::log(eps);
  places_.back().key_norms = key_norm_floats_;
  key_norm_floats_ += 2 * int64_t{s.num_kv_heads} * s.norm_tiles;
  key_norm_sequences_.push_back(static_cast<int>(sequences_.size()) - 1);
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

void SequenceTable::AddPacking(const AttentionProblem& problem, size_t first_sequence) {
  const int64_t padded = RoundUpTo8(problem.head_dim);
  const auto add = [&](const void* from, int64_t vectors) {
    const int64_t offset = packed_bytes_;
    pack_jobs_.push_back({.from = from,
                          .num_vectors = vectors,
                          .head_dim = problem.head_dim,
                          .padded_dim = static_cast<int32_t>(padded)});
    pack_offsets_.push_back(offset);
    constexpr int64_t kAlignment{kWorkspaceAlignment};
    packed_bytes_ = CeilDiv(offset + vectors * padded * 2, kAlignment) * kAlignment;
    return offset;
  };
  const int64_t q = add(problem.q, problem.total_q * problem.num_q_heads);
  const int64_t k = add(problem.k, problem.total_kv * problem.num_kv_heads);
  const int64_t v = add(problem.v, problem.total_kv * problem.num_kv_heads);
  const int64_t d_o = IsBackward(problem)
                          ? add(problem.gradients.d_o, problem.total_q * problem.num_q_heads)
                          : kNone;
  for (size_t n = 0; n < problem.sequences.size(); ++n) {
    const Sequence& sequence = problem.sequences[n];
    Places& places = places_[first_sequence + n];
    const int64_t q_offset = sequence.q_begin * problem.num_q_heads * padded * 2;
    const int64_t kv_offset = sequence.kv_begin * problem.num_kv_heads * padded * 2;
    places.packed_q = q + q_offset;
    places.packed_k = k + kv_offset;
    places.packed_v = v + kv_offset;
    if (d_o != kNone) places.packed_d_o = d_o + q_offset;
  }
}

void SequenceTable::PlaceUploads(WorkspaceLayout* layout) {
  layout_.done_blocks = layout->Place<unsigned>(num_key_norm_counters_);
  layout_.slopes = layout->Place(slopes_);
  layout_.key_norm_jobs = layout->Place(key_norm_jobs_);
  layout_.pack_jobs = layout->Place(pack_jobs_);
}

void SequenceTable::PlaceScratch(WorkspaceLayout* layout) {
  layout_.key_norms = layout->Place<float>(key_norm_floats_);
  layout_.packed = layout->Place<char>(packed_bytes_);
}

void SequenceTable::Bind(void* staging, void* workspace) {
  char* const packed = ArrayAt<char>(workspace, layout_.packed);
  auto* const norms = ArrayAt<float>(workspace, layout_.key_norms);
  auto* const slopes = ArrayAt<float>(workspace, layout_.slopes);
  for (size_t n = 0; n < sequences_.size(); ++n) {
    SequenceParams& s = sequences_[n];
    const Places& places = places_[n];
    if (places.packed_q != kNone) {
      s.q = packed + places.packed_q;
      s.k = packed + places.packed_k;
      s.v = packed + places.packed_v;
    }
    if (places.packed_d_o != kNone) d_o_[n] = packed + places.packed_d_o;
    if (places.slopes != kNone) s.slopes = slopes + places.slopes;
    if (places.key_norms != kNone) s.key_norms = norms + places.key_norms;
  }
  auto* const counters = ArrayAt<unsigned>(workspace, layout_.done_blocks);
  for (size_t n = 0; n < key_norm_jobs_.size(); ++n) {
    const int sequence = key_norm_sequences_[n];
    key_norm_jobs_[n].k = sequences_[sequence].k;
    key_norm_jobs_[n].key_norms = norms + places_[sequence].key_norms;
    key_norm_jobs_[n].done_blocks = counters + key_norm_counters_[n];
  }
  for (size_t n = 0; n < pack_jobs_.size(); ++n) pack_jobs_[n].to = packed + pack_offsets_[n];

  CopyArray(slopes_, staging, layout_.slopes);
  CopyArray(key_norm_jobs_, staging, layout_.key_norm_jobs);
  CopyArray(pack_jobs_, staging, layout_.pack_jobs);
  key_norm_params_ = {.jobs = ArrayAt<KeyNormJob>(workspace, layout_.key_norm_jobs),
                      .num_jobs = static_cast<int32_t>(key_norm_jobs_.size()),
                      .num_blocks = key_norm_blocks_,
                      .only = key_norm_jobs_.size() == 1 ? key_norm_jobs_[0] : KeyNormJob{}};
  pack_params_ = {.jobs = ArrayAt<PackJob>(workspace, layout_.pack_jobs),
                  .num_jobs = static_cast<int32_t>(pack_jobs_.size())};
}

}  // namespace flashbias::cuda
