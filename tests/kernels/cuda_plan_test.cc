// kernels/cuda/attention_plan.h on the host alone: no GPU, no driver. The traits are an H200's.
#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/cuda/portable/portable_attention.h"
#include "tests/support/attention_case.h"

namespace flashbias::cuda {
namespace {

using support::AttentionCase;
using support::Materialise;
using support::OwnedProblem;
using support::SlopeKind;
using ::testing::HasSubstr;
using Family = PlanOptions::Family;

constexpr DeviceTraits kHopperDevice = {.ordinal = 0, .compute_capability = 90, .num_sms = 132};
constexpr DeviceTraits kAmpereDevice = {.ordinal = 0, .compute_capability = 80, .num_sms = 108};

AttentionCase Case(int64_t q_len, int64_t kv_len) {
  AttentionCase c;
  c.dtype = DType::kFloat16;
  c.head_dim = 64;
  c.sequences = {{.q_len = q_len, .kv_len = kv_len}};
  return c;
}

// The cases' problems, kept alive. Their tensors lie in host memory: a plan reads no tensor.
class Batch {
 public:
  explicit Batch(const std::vector<AttentionCase>& cases) {
    for (const AttentionCase& c : cases) {
      owned_.push_back(Materialise(c));
      problems_.push_back(owned_.back().problem());
    }
  }
  std::vector<AttentionProblem>& problems() { return problems_; }

 private:
  std::vector<OwnedProblem> owned_;
  std::vector<AttentionProblem> problems_;
};

absl::StatusOr<AttentionPlan> Plan(const std::vector<AttentionCase>& cases,
                                   const PlanOptions& options = {},
                                   const DeviceTraits& device = kHopperDevice) {
  Batch batch(cases);
  return AttentionPlan::Create(batch.problems(), device, options);
}

TEST(CudaPlanErrors, NameWhatCameAndWhatIsAccepted) {
  AttentionCase c = Case(10, 10);
  c.dtype = DType::kFloat32;
  const absl::Status fp32 = Plan({c}).status();
  EXPECT_EQ(fp32.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(fp32.message()), HasSubstr("float32"));
  EXPECT_THAT(std::string(fp32.message()), HasSubstr("bfloat16"));
  EXPECT_EQ(Plan({Case(10, 10), c}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CudaPlanErrors, GroupsDoNotMix) {
  AttentionCase dtype = Case(10, 10);
  dtype.dtype = DType::kBFloat16;
  AttentionCase head_dim = Case(10, 10);
  head_dim.head_dim = 65;
  AttentionCase low_rank = Case(10, 10);
  low_rank.bias = BiasKind::kLowRank;
  for (const AttentionCase& other : {dtype, head_dim, low_rank}) {
    EXPECT_EQ(Plan({Case(10, 10), other}).status().code(), absl::StatusCode::kInvalidArgument)
        << Describe(other);
    EXPECT_TRUE(Plan({other}).ok());
  }
  AttentionCase no_bias = Case(7, 10);
  no_bias.bias = BiasKind::kNone;
  AttentionCase narrower = Case(10, 10);
  narrower.head_dim = 33;
  EXPECT_TRUE(Plan({Case(10, 10), no_bias, narrower}).ok());
}

TEST(CudaPlanErrors, SequencesOfMoreThanABillionRows) {
  Batch batch({Case(1, 1)});
  Sequence sequence = batch.problems()[0].sequences[0];
  sequence.kv_len = (int64_t{1} << 30) + 1;
  batch.problems()[0].sequences = absl::MakeConstSpan(&sequence, 1);
  EXPECT_EQ(AttentionPlan::Create(batch.problems(), kHopperDevice).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CudaPlanGroup, PadsTheHeadDimAndSeparatesLowRank) {
  AttentionProblem problem;
  problem.dtype = DType::kBFloat16;
  const auto padded = [&](int head_dim) {
    problem.head_dim = head_dim;
    return AttentionPlan::GroupOf(problem, kHopperDevice).padded_head_dim;
  };
  EXPECT_EQ(padded(1), 32);
  EXPECT_EQ(padded(32), 32);
  EXPECT_EQ(padded(33), 64);
  EXPECT_EQ(padded(64), 64);
  EXPECT_EQ(padded(65), 128);
  EXPECT_EQ(padded(128), 128);
  EXPECT_EQ(AttentionPlan::GroupOf(problem, kHopperDevice).dtype, DType::kBFloat16);
  EXPECT_FALSE(AttentionPlan::GroupOf(problem, kHopperDevice).low_rank);
  problem.bias_kind = BiasKind::kAlibi;
  const AttentionPlan::Group alibi = AttentionPlan::GroupOf(problem, kHopperDevice);
  EXPECT_FALSE(alibi.low_rank);
  problem.bias_kind = BiasKind::kLowRank;
  EXPECT_TRUE(AttentionPlan::GroupOf(problem, kHopperDevice).low_rank);
  EXPECT_FALSE(AttentionPlan::GroupOf(problem, kHopperDevice) == alibi);
}

// Every (sequence, head, query row) has one item for each of its sequence's splits, splits cover
// the keys, and partial results do not overlap.
void ExpectItemsCoverEverything(const AttentionPlan& plan) {
  const absl::Span<const SequenceParams> sequences = plan.sequences();
  const bool hopper = plan.family() == KernelFamily::kHopper;
  const int tile_rows =
      hopper ? hopper::QueryTileRows(plan.group().padded_head_dim) : portable::kQueryTileRows;
  // [sequence][(row * heads + head) * splits + split]
  std::vector<std::vector<int>> covered;
  int64_t next_partial = 0;
  bool splits = false;
  for (const SequenceParams& s : sequences) {
    ASSERT_GE(s.num_splits, 1);
    ASSERT_GE(s.heads_per_tile, 1);
    EXPECT_EQ(s.num_q_heads % s.heads_per_tile, 0);
    EXPECT_EQ(s.num_q_heads / s.num_kv_heads % s.heads_per_tile, 0) << "heads of two kv heads";
    covered.emplace_back(size_t{1} * s.q_len * s.num_q_heads * s.num_splits);
    if (s.num_splits == 1) continue;
    splits = true;
    EXPECT_FALSE(hopper);
    EXPECT_EQ(s.keys_per_split % portable::kKeyTileKeys, 0);
    EXPECT_GE(int64_t{s.keys_per_split} * s.num_splits, s.kv_len);
    EXPECT_LT(int64_t{s.keys_per_split} * (s.num_splits - 1), s.kv_len) << "an empty split";
    EXPECT_GE(s.partial_begin, next_partial);
    next_partial = s.partial_begin + int64_t{s.q_len} * s.num_q_heads * s.num_splits;
  }
  EXPECT_EQ(plan.has_splits(), splits);
  for (const WorkItem& item : plan.items()) {
    ASSERT_GE(item.sequence, 0);
    ASSERT_LT(static_cast<size_t>(item.sequence), sequences.size());
    const SequenceParams& s = sequences[item.sequence];
    ASSERT_GE(item.q_begin, 0);
    ASSERT_LT(item.q_begin, s.q_len);
    ASSERT_GE(item.split, 0);
    ASSERT_LT(item.split, s.num_splits);
    ASSERT_EQ(item.head % s.heads_per_tile, 0);
    const int rows = tile_rows / s.heads_per_tile;
    for (int row = item.q_begin; row < std::min(item.q_begin + rows, s.q_len); ++row) {
      for (int head = item.head; head < item.head + s.heads_per_tile; ++head) {
        ASSERT_LT(head, s.num_q_heads);
        ++covered[item.sequence]
                 [(size_t{1} * row * s.num_q_heads + head) * s.num_splits + item.split];
      }
    }
  }
  for (size_t n = 0; n < covered.size(); ++n) {
    EXPECT_TRUE(std::all_of(covered[n].begin(), covered[n].end(), [](int c) { return c == 1; }))
        << "sequence " << n;
  }
}

TEST(CudaPlanItems, CoverEveryRowOnce) {
  AttentionCase mixed = Case(0, 0);
  mixed.num_q_heads = 12;
  mixed.num_kv_heads = 3;
  mixed.sequences = {{.q_len = 65, .kv_len = 65},  {.q_len = 0, .kv_len = 0},
                     {.q_len = 1, .kv_len = 2000}, {.q_len = 3, .kv_len = 0},
                     {.q_len = 0, .kv_len = 9},    {.q_len = 500, .kv_len = 70}};
  AttentionCase long_one = Case(3000, 3000);
  AttentionCase decode = Case(1, 60000);
  decode.num_q_heads = 32;
  decode.num_kv_heads = 4;
  AttentionCase few_rows = Case(16, 1500);
  few_rows.num_q_heads = 5;
  few_rows.num_kv_heads = 1;
  AttentionCase many_heads = Case(3, 700);
  many_heads.num_q_heads = 100;
  many_heads.num_kv_heads = 1;
  AttentionCase no_bias = Case(100, 900);
  no_bias.bias = BiasKind::kNone;
  const std::vector<std::vector<AttentionCase>> batches = {
      {mixed},          {long_one},        {decode},
      {few_rows},       {many_heads},      {no_bias},
      {Case(192, 192)}, {mixed, long_one}, {decode, few_rows, many_heads}};
  for (const auto& cases : batches) {
    for (const Family family : {Family::kFastest, Family::kHopper, Family::kPortable}) {
      SCOPED_TRACE(::testing::Message()
                   << Describe(cases[0]) << " family " << static_cast<int>(family));
      const absl::StatusOr<AttentionPlan> plan = Plan(cases, {.family = family});
      ASSERT_TRUE(plan.ok()) << plan.status();
      ExpectItemsCoverEverything(*plan);
    }
  }
}

TEST(CudaPlanItems, CoverRandomProblems) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    AttentionCase c = support::RandomCase(seed);
    if (c.dtype == DType::kFloat32) c.dtype = DType::kFloat16;
    const Family family = seed % 2 == 0 ? Family::kHopper : Family::kPortable;
    const absl::StatusOr<AttentionPlan> plan = Plan({c}, {.family = family});
    ASSERT_TRUE(plan.ok()) << plan.status();
    SCOPED_TRACE(Describe(c));
    ExpectItemsCoverEverything(*plan);
  }
}

TEST(CudaPlanItems, AFewRowsAgainstManyKeysAreSplit) {
  const absl::StatusOr<AttentionPlan> plan = Plan({Case(1, 60000)});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->has_splits());
  EXPECT_GT(plan->items().size(), 66u);
  const absl::StatusOr<AttentionPlan> full = Plan({Case(30000, 30000)});
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_FALSE(full->has_splits());
}

// Bound to host memory, the uploaded arrays can be read back through the params.
TEST(CudaPlanBind, WritesWhatTheDeviceReadsAndNothingBeyond) {
  constexpr size_t kGuard = 64;
  Batch batch({Case(100, 130), Case(1, 3000), Case(0, 0)});
  absl::StatusOr<AttentionPlan> plan = AttentionPlan::Create(
      batch.problems(), kHopperDevice,
      {.family = Family::kPortable, .skipping = PlanOptions::Skipping::kWhereverPossible});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const size_t staged = plan->staging_bytes();
  EXPECT_LE(staged, plan->workspace_bytes());
  EXPECT_GE(staged, plan->items().size() * sizeof(WorkItem) +
                        plan->sequences().size() * sizeof(SequenceParams));
  EXPECT_LT(staged, size_t{1} << 20);
  std::vector<char> staging(staged + 2 * kGuard, '\x5a');
  char* const image = staging.data() + kGuard;
  auto* const workspace = reinterpret_cast<char*>(uintptr_t{1} << 20);  // never read
  ASSERT_TRUE(plan->Bind(image, workspace).ok());
  EXPECT_EQ(std::count(staging.begin(), staging.begin() + kGuard, '\x5a'), int64_t{kGuard});
  EXPECT_EQ(std::count(staging.end() - kGuard, staging.end(), '\x5a'), int64_t{kGuard});

  const auto offset_of = [&](const void* device) {
    return static_cast<const char*>(device) - workspace;
  };
  const auto staged_at = [&](const void* device) { return image + offset_of(device); };
  const AttentionParams& params = plan->params();
  ASSERT_EQ(static_cast<size_t>(params.num_items), plan->items().size());
  EXPECT_EQ(std::memcmp(staged_at(params.items), plan->items().data(),
                        plan->items().size() * sizeof(WorkItem)),
            0);
  const std::string zeros(3 * sizeof(TileCounts), '\0');
  EXPECT_EQ(std::memcmp(staged_at(plan->tile_counts()), zeros.data(), zeros.size()), 0);
  EXPECT_EQ(std::memcmp(staged_at(params.next_item), zeros.data(), 2 * sizeof(unsigned)), 0);
  ASSERT_TRUE(plan->has_splits());
  const SequenceParams& split = plan->sequences()[1];
  ASSERT_GT(split.num_splits, 1);
  const int64_t rows =
      split.partial_begin + int64_t{split.q_len} * split.num_q_heads * split.num_splits;
  const auto workspace_bytes = static_cast<int64_t>(plan->workspace_bytes());
  EXPECT_GE(offset_of(params.partial_o), static_cast<int64_t>(staged));
  EXPECT_LE(offset_of(params.partial_o + rows * plan->group().padded_head_dim), workspace_bytes);
  EXPECT_LE(offset_of(params.partial_lse + rows), workspace_bytes);
  for (const SequenceParams& s : plan->sequences()) {
    if (s.key_norms == nullptr) continue;
    EXPECT_GE(offset_of(s.key_norms), static_cast<int64_t>(staged));
    EXPECT_LE(offset_of(s.key_norms + 2 * s.num_kv_heads * s.norm_tiles), workspace_bytes);
  }
}

TEST(CudaPlanBind, UnalignedTensorsAreGivenRoomInTheWorkspace) {
  AttentionCase aligned = Case(500, 500);
  AttentionCase odd = aligned;
  odd.byte_offset = 1;
  AttentionCase narrow = aligned;
  narrow.head_dim = 60;
  const size_t plain = Plan({aligned})->workspace_bytes();
  const size_t tensors = size_t{3} * 500 * 2 * 64 * 2;
  for (const AttentionCase& packed : {odd, narrow}) {
    EXPECT_GE(Plan({packed})->workspace_bytes(), plain + tensors - 4096) << Describe(packed);
    EXPECT_LE(Plan({packed})->workspace_bytes(), plain + tensors + 4096) << Describe(packed);
  }
}

TEST(CudaPlanBind, HeadDimsThatAreMultiplesOfEightAreNotPacked) {
  for (const int head_dim : {8, 40, 64, 72, 128}) {
    AttentionCase c = Case(500, 500);
    c.head_dim = head_dim;
    EXPECT_LT(Plan({c})->workspace_bytes(), size_t{40} << 10) << head_dim;
  }
}

// An answer must not depend on the batch it came in (attention_backend.h), so neither may anything
// that orders its sums.
TEST(CudaPlanBatch, OthersChangeNothingOfAProblem) {
  AttentionCase decode = Case(1, 60000);
  decode.num_q_heads = 8;
  AttentionCase odd = Case(50, 50);
  odd.softmax_scale = -0.1f;
  const std::vector<AttentionCase> of_portable = {decode, Case(2, 700), odd};
  const std::vector<AttentionCase> of_hopper = {Case(300, 3000), Case(9000, 9000), Case(17, 5000)};
  std::vector<AttentionCase> all = of_portable;
  all.insert(all.end(), of_hopper.begin(), of_hopper.end());
  const std::pair<Family, std::vector<AttentionCase>> batches[] = {{Family::kFastest, of_portable},
                                                                   {Family::kFastest, of_hopper},
                                                                   {Family::kHopper, of_hopper},
                                                                   {Family::kPortable, all}};
  for (const auto& [family, cases] : batches) {
    const absl::StatusOr<AttentionPlan> batch = Plan(cases, {.family = family});
    ASSERT_TRUE(batch.ok()) << batch.status();
    for (size_t n = 0; n < cases.size(); ++n) {
      SCOPED_TRACE(::testing::Message()
                   << Describe(cases[n]) << " family " << static_cast<int>(family));
      const absl::StatusOr<AttentionPlan> alone = Plan({cases[n]}, {.family = family});
      ASSERT_TRUE(alone.ok()) << alone.status();
      EXPECT_EQ(batch->family(), alone->family());
      const SequenceParams& in_batch = batch->sequences()[n];
      const SequenceParams& own = alone->sequences()[0];
      EXPECT_EQ(in_batch.num_splits, own.num_splits);
      EXPECT_EQ(in_batch.keys_per_split, own.keys_per_split);
      EXPECT_EQ(in_batch.heads_per_tile, own.heads_per_tile);
      EXPECT_EQ(in_batch.log_eps_per_side, own.log_eps_per_side);
    }
  }
}

KernelFamily FamilyOf(const AttentionCase& c, Family family = Family::kFastest,
                      const DeviceTraits& device = kHopperDevice) {
  const absl::StatusOr<AttentionPlan> plan = Plan({c}, {.family = family}, device);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan->family();
}

TEST(CudaPlanFamily, HopperServesWhatItCan) {
  AttentionCase c = Case(300, 300);
  EXPECT_EQ(FamilyOf(c), KernelFamily::kHopper);
  c.dtype = DType::kBFloat16;
  c.mask = {.causal = false, .left_window = 50};
  c.slopes = SlopeKind::kNegative;
  EXPECT_EQ(FamilyOf(c), KernelFamily::kHopper);
  c.bias = BiasKind::kNone;
  EXPECT_EQ(FamilyOf(c), KernelFamily::kHopper);
  c.head_dim = 7;
  c.byte_offset = 1;
  EXPECT_EQ(FamilyOf(c), KernelFamily::kHopper);
}

TEST(CudaPlanFamily, OtherDevicesAndOtherWishesGetThePortableKernel) {
  const AttentionCase c = Case(300, 300);
  EXPECT_EQ(FamilyOf(c, Family::kPortable), KernelFamily::kPortable);
  EXPECT_EQ(FamilyOf(c, Family::kFastest, kAmpereDevice), KernelFamily::kPortable);
  EXPECT_EQ(FamilyOf(c, Family::kHopper, kAmpereDevice), KernelFamily::kPortable);
  // sm_90a code runs on compute capability 9.0 only.
  constexpr DeviceTraits kBlackwell = {.ordinal = 0, .compute_capability = 100, .num_sms = 148};
  EXPECT_EQ(FamilyOf(c, Family::kHopper, kBlackwell), KernelFamily::kPortable);
}

// What the Hopper kernel cannot do falls back, wish or not.
TEST(CudaPlanFamily, WhatHopperCannotDoFallsBack) {
  AttentionCase low_rank = Case(300, 300);
  low_rank.bias = BiasKind::kLowRank;
  AttentionCase negative_scale = Case(300, 300);
  negative_scale.softmax_scale = -0.1f;
  AttentionCase tiny_scale = Case(300, 300);
  tiny_scale.softmax_scale = 1e-30f;
  AttentionCase large_scale = Case(300, 300);  // slope / scale is lost in fp16
  large_scale.softmax_scale = 4096;
  AttentionCase largest_scale = Case(300, 300);  // overflows in base 2
  largest_scale.bias = BiasKind::kNone;
  largest_scale.softmax_scale = 3e38f;
  for (const AttentionCase& c :
       {low_rank, negative_scale, tiny_scale, large_scale, largest_scale}) {
    EXPECT_EQ(FamilyOf(c, Family::kHopper), KernelFamily::kPortable) << Describe(c);
    EXPECT_EQ(FamilyOf(c), KernelFamily::kPortable) << Describe(c);
  }
  for (const float slope : {3e38f, -3e38f, 17000.0f}) {
    AttentionCase c = Case(300, 300);
    c.softmax_scale = 1;
    OwnedProblem owned = Materialise(c);
    owned.slopes()[1] = slope;
    const AttentionProblem problem = owned.problem();
    const absl::StatusOr<AttentionPlan> plan =
        AttentionPlan::Create(absl::MakeConstSpan(&problem, 1), kHopperDevice);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->family(), KernelFamily::kPortable) << slope;
  }
}

// The launch argument carries the slopes of a plan's only sequence: its own.
TEST(CudaPlanHopper, SlopesAreThoseOfTheFirstSequence) {
  AttentionCase without_sequences = Case(0, 0);
  without_sequences.sequences.clear();
  AttentionCase alibi = Case(300, 300);
  alibi.slopes = SlopeKind::kStandard;
  AttentionCase no_bias = Case(300, 300);
  no_bias.bias = BiasKind::kNone;
  const absl::StatusOr<AttentionPlan> plan =
      Plan({without_sequences, alibi}, {.family = Family::kHopper});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::vector<float> slopes = support::MakeSlopes(alibi.slopes, alibi.num_q_heads);
  EXPECT_TRUE(std::equal(slopes.begin(), slopes.end(), plan->hopper_plan().slopes));
  const absl::StatusOr<AttentionPlan> unbiased =
      Plan({without_sequences, no_bias}, {.family = Family::kHopper});
  ASSERT_TRUE(unbiased.ok()) << unbiased.status();
  EXPECT_EQ(unbiased->hopper_plan().slopes, nullptr);
}

TEST(CudaPlanFamily, AFewRowsGoToTheKernelThatSplitsKeys) {
  EXPECT_EQ(FamilyOf(Case(1, 60000)), KernelFamily::kPortable);
}

// What a plan does with eps: the table of key norms is there only where something may be skipped.
TEST(CudaPlanSkipping, OnlyWhereSlopesDecayAndEpsAllows) {
  const PlanOptions options = {.skipping = PlanOptions::Skipping::kWhereverPossible};
  const auto may_skip = [&](const AttentionCase& c, const PlanOptions& with) {
    return Plan({c}, with)->sequences()[0].log_eps_per_side >
           -std::numeric_limits<float>::infinity();
  };
  AttentionCase c = Case(1000, 1000);
  EXPECT_TRUE(may_skip(c, options));
  EXPECT_FALSE(may_skip(c, {})) << "pays at no such length";
  EXPECT_TRUE(may_skip(
      [] {
        AttentionCase longer = Case(30000, 30000);
        return longer;
      }(),
      {}));
  c.eps = 0;
  EXPECT_FALSE(may_skip(c, options));
  c.eps = kDefaultEps;
  for (const SlopeKind slopes : {SlopeKind::kZero, SlopeKind::kNegative}) {
    c.slopes = slopes;
    EXPECT_FALSE(may_skip(c, options)) << static_cast<int>(slopes);
  }
  c.bias = BiasKind::kNone;
  EXPECT_FALSE(may_skip(c, options));
}

}  // namespace
}  // namespace flashbias::cuda
