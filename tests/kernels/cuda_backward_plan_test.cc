// kernels/cuda/backward_plan.h on the host alone: no GPU, no driver. The traits are an H200's.
#include "kernels/cuda/backward_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/hopper/hopper_backward.h"
#include "kernels/cuda/portable/portable_backward.h"
#include "tests/support/attention_case.h"

namespace flashbias::cuda {
namespace {

using support::AttentionCase;
using support::Materialise;
using support::OwnedProblem;
using support::SlopeKind;
using ::testing::HasSubstr;
using Family = PlanOptions::Family;
using Skipping = PlanOptions::Skipping;

constexpr DeviceTraits kHopperDevice = {.ordinal = 0, .compute_capability = 90, .num_sms = 132};
constexpr DeviceTraits kAmpereDevice = {.ordinal = 0, .compute_capability = 80, .num_sms = 108};

AttentionCase Case(int64_t q_len, int64_t kv_len) {
  AttentionCase c;
  c.dtype = DType::kFloat16;
  c.head_dim = 64;
  c.sequences = {{.q_len = q_len, .kv_len = kv_len}};
  return c;
}

// An address that is never read, `offset` bytes after an aligned one.
template <typename T>
T* Address(int number, int offset = 0) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  return reinterpret_cast<T*>((uintptr_t{1} << 40) * number + offset);
}

// The cases' backward problems with all gradients of their bias, kept alive. A plan reads no
// tensor.
class Batch {
 public:
  explicit Batch(const std::vector<AttentionCase>& cases) {
    for (const AttentionCase& c : cases) {
      owned_.push_back(Materialise(c));
      AttentionProblem problem = owned_.back().problem();
      problem.direction = Direction::kBackward;
      problem.lse = Address<float>(1);
      problem.gradients = {.d_o = Address<void>(2, c.byte_offset),
                           .dq = Address<void>(3, c.byte_offset),
                           .dk = Address<void>(4, c.byte_offset),
                           .dv = Address<void>(5, c.byte_offset)};
      if (c.bias == BiasKind::kAlibi) problem.gradients.dslopes = Address<float>(6);
      if (c.bias == BiasKind::kLowRank) {
        problem.gradients.dphi_q = Address<float>(7);
        problem.gradients.dphi_k = Address<float>(8);
      }
      problems_.push_back(problem);
    }
  }
  std::vector<AttentionProblem>& problems() { return problems_; }

 private:
  std::vector<OwnedProblem> owned_;
  std::vector<AttentionProblem> problems_;
};

absl::StatusOr<BackwardPlan> Plan(const std::vector<AttentionCase>& cases,
                                  const PlanOptions& options = {},
                                  const DeviceTraits& device = kHopperDevice) {
  Batch batch(cases);
  return BackwardPlan::Create(batch.problems(), device, options);
}

// A plan of the portable family (the other needs a driver), bound to host memory for what is
// uploaded and to addresses that are never read for the rest.
class BoundPlan {
 public:
  static constexpr size_t kGuard = 64;

  explicit BoundPlan(const std::vector<AttentionCase>& cases, Skipping skipping)
      : batch(cases),
        plan(*BackwardPlan::Create(batch.problems(), kHopperDevice,
                                   {.family = Family::kPortable, .skipping = skipping})),
        staging(plan.staging_bytes() + 2 * kGuard, '\x5a') {
    EXPECT_TRUE(plan.Bind(staging.data() + kGuard, workspace).ok());
  }
  int64_t OffsetOf(const void* device) const {
    return static_cast<const char*>(device) - workspace;
  }
  // [begin, begin + count) lies in what is not uploaded.
  template <typename T>
  bool IsScratch(const T* begin, int64_t count) const {
    return OffsetOf(begin) >= static_cast<int64_t>(plan.staging_bytes()) &&
           OffsetOf(begin + count) <= static_cast<int64_t>(plan.workspace_bytes());
  }
  template <typename T>
  const T* Staged(const T* device) const {
    return reinterpret_cast<const T*>(staging.data() + kGuard + OffsetOf(device));
  }
  template <typename T>
  bool IsStagedZero(const T* device, size_t count) const {
    const std::string zeros(count * sizeof(T), '\0');
    return std::memcmp(Staged(device), zeros.data(), zeros.size()) == 0;
  }

  char* const workspace = Address<char>(9);
  Batch batch;
  BackwardPlan plan;
  std::vector<char> staging;
};

TEST(CudaBackwardPlanErrors, NameWhatCameAndWhatIsAccepted) {
  AttentionCase fp32 = Case(10, 10);
  fp32.dtype = DType::kFloat32;
  const absl::Status status = Plan({fp32}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("float32"));
  EXPECT_EQ(BackwardPlan::Create({}, kHopperDevice).status().code(),
            absl::StatusCode::kInvalidArgument);

  Batch forward({Case(10, 10)});
  forward.problems()[0].direction = Direction::kForward;
  EXPECT_THAT(
      std::string(BackwardPlan::Create(forward.problems(), kHopperDevice).status().message()),
      HasSubstr("direction is forward"));

  Batch large({Case(1, 1)});
  Sequence sequence = large.problems()[0].sequences[0];
  sequence.q_len = (int64_t{1} << 30) + 1;
  large.problems()[0].sequences = absl::MakeConstSpan(&sequence, 1);
  EXPECT_EQ(BackwardPlan::Create(large.problems(), kHopperDevice).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CudaBackwardPlanErrors, GroupsDoNotMix) {
  AttentionCase dtype = Case(10, 10);
  dtype.dtype = DType::kBFloat16;
  AttentionCase head_dim = Case(10, 10);
  head_dim.head_dim = 65;
  AttentionCase low_rank = Case(10, 10);
  low_rank.bias = BiasKind::kLowRank;
  AttentionCase no_dslopes = Case(10, 10);
  no_dslopes.bias = BiasKind::kNone;
  for (const AttentionCase& other : {dtype, head_dim, low_rank, no_dslopes}) {
    EXPECT_EQ(Plan({Case(10, 10), other}).status().code(), absl::StatusCode::kInvalidArgument)
        << Describe(other);
    EXPECT_TRUE(Plan({other}).ok());
  }
  Batch batch({Case(10, 10), no_dslopes});
  batch.problems()[0].gradients.dslopes = nullptr;
  EXPECT_TRUE(BackwardPlan::Create(batch.problems(), kHopperDevice).ok());
  AttentionCase narrower = Case(10, 10);
  narrower.head_dim = 33;
  EXPECT_TRUE(Plan({Case(10, 10), narrower}).ok());
}

// Every query row of every head has one q item, and every key of every key/value head one kv item.
void ExpectItemsCoverEverything(const BackwardPlan& plan,
                                absl::Span<const AttentionProblem> problems) {
  std::vector<std::pair<const AttentionProblem*, Sequence>> sequences;
  for (const AttentionProblem& p : problems) {
    for (const Sequence& s : p.sequences) sequences.emplace_back(&p, s);
  }
  const int padded = plan.group().padded_head_dim;
  const bool hopper = plan.family() == KernelFamily::kHopper;
  const auto expect = [&](absl::Span<const WorkItem> items, int step, bool keys) {
    std::vector<std::vector<int>> covered;  // [sequence][row * heads + head]
    covered.reserve(sequences.size());
    for (const auto& [p, s] : sequences) {
      covered.emplace_back(keys ? s.kv_len * p->num_kv_heads : s.q_len * p->num_q_heads);
    }
    for (const WorkItem& item : items) {
      ASSERT_LT(static_cast<size_t>(item.sequence), sequences.size());
      const auto& [p, s] = sequences[item.sequence];
      const int64_t rows = keys ? s.kv_len : s.q_len;
      const int heads = keys ? p->num_kv_heads : p->num_q_heads;
      ASSERT_EQ(item.q_begin % step, 0);
      ASSERT_GE(item.q_begin, 0);
      ASSERT_LT(item.q_begin, rows);
      ASSERT_GE(item.head, 0);
      ASSERT_LT(item.head, heads);
      EXPECT_EQ(item.split, 0);
      for (int64_t row = item.q_begin; row < std::min<int64_t>(item.q_begin + step, rows); ++row) {
        ++covered[item.sequence][row * heads + item.head];
      }
    }
    for (size_t n = 0; n < covered.size(); ++n) {
      EXPECT_TRUE(std::all_of(covered[n].begin(), covered[n].end(), [](int c) { return c == 1; }))
          << (keys ? "keys" : "queries") << " of sequence " << n;
    }
  };
  expect(plan.kv_items(), hopper ? hopper::KvItemKeys(padded) : portable::kKvItemKeys, true);
  expect(plan.q_items(), hopper ? hopper::QItemRows(padded) : portable::kQItemRows, false);
}

AttentionCase Mixed() {
  AttentionCase c = Case(0, 0);
  c.num_q_heads = 12;
  c.num_kv_heads = 3;
  c.sequences = {{.q_len = 65, .kv_len = 65},  {.q_len = 0, .kv_len = 0},
                 {.q_len = 1, .kv_len = 2000}, {.q_len = 3, .kv_len = 0},
                 {.q_len = 0, .kv_len = 9},    {.q_len = 500, .kv_len = 70}};
  return c;
}

TEST(CudaBackwardPlanItems, CoverEverythingOnce) {
  const std::vector<std::vector<AttentionCase>> batches = {
      {Mixed()}, {Case(3000, 3000)}, {Mixed(), Case(3000, 3000), Case(1, 700)}};
  for (const auto& cases : batches) {
    for (const Family family : {Family::kFastest, Family::kPortable}) {
      for (const Skipping skipping : {Skipping::kWhenItPays, Skipping::kWhereverPossible}) {
        Batch batch(cases);
        const absl::StatusOr<BackwardPlan> plan = BackwardPlan::Create(
            batch.problems(), kHopperDevice, {.family = family, .skipping = skipping});
        ASSERT_TRUE(plan.ok()) << plan.status();
        ExpectItemsCoverEverything(*plan, batch.problems());
      }
    }
  }
}

TEST(CudaBackwardPlanItems, CoverRandomProblems) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    AttentionCase c = support::RandomCase(seed);
    if (c.dtype == DType::kFloat32) c.dtype = DType::kFloat16;
    SCOPED_TRACE(Describe(c));
    Batch batch({c});
    const absl::StatusOr<BackwardPlan> plan =
        BackwardPlan::Create(batch.problems(), kHopperDevice,
                             {.family = seed % 2 == 0 ? Family::kHopper : Family::kPortable});
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectItemsCoverEverything(*plan, batch.problems());
  }
}

// Under a causal mask the last rows see most keys, and the first keys are seen by most rows.
TEST(CudaBackwardPlanItems, LongestFirst) {
  AttentionCase c = Case(2000, 2000);
  c.eps = 0;
  const BackwardPlan plan = *Plan({c});
  const auto rising = [](const WorkItem& a, const WorkItem& b) { return a.q_begin < b.q_begin; };
  const auto falling = [](const WorkItem& a, const WorkItem& b) { return a.q_begin > b.q_begin; };
  EXPECT_TRUE(std::is_sorted(plan.kv_items().begin(), plan.kv_items().end(), rising));
  EXPECT_TRUE(std::is_sorted(plan.q_items().begin(), plan.q_items().end(), falling));

  // A head that skips nothing comes before those that do.
  AttentionCase mixed = Case(4000, 4000);
  mixed.slopes = SlopeKind::kMixed;  // of head 0 steep, of head 1 zero
  const BackwardPlan skips = *Plan({mixed}, {.skipping = Skipping::kWhereverPossible});
  EXPECT_EQ(skips.kv_items().front().head, 1);
  EXPECT_EQ(skips.q_items().front().head, 1);

  // A key/value head's items are as long as its heads together.
  AttentionCase grouped = Case(600, 600);
  grouped.num_q_heads = 8;
  AttentionCase alone = Case(1000, 1000);
  const BackwardPlan groups = *Plan({alone, grouped});
  EXPECT_EQ(groups.kv_items().front().sequence, 1);
  EXPECT_EQ(groups.q_items().front().sequence, 0);
}

TEST(CudaBackwardPlanBind, WritesWhatTheDeviceReadsAndNothingBeyond) {
  AttentionCase odd = Case(1, 3000);
  odd.byte_offset = 2;
  const BoundPlan bound({Case(100, 130), odd, Case(0, 0), Mixed()}, Skipping::kWhereverPossible);
  const BackwardPlan& plan = bound.plan;
  constexpr int64_t kGuard = BoundPlan::kGuard;
  EXPECT_EQ(std::count(bound.staging.begin(), bound.staging.begin() + kGuard, '\x5a'), kGuard);
  EXPECT_EQ(std::count(bound.staging.end() - kGuard, bound.staging.end(), '\x5a'), kGuard);

  const BackwardParams& params = plan.params();
  EXPECT_EQ(params.num_kv_items, static_cast<int>(plan.kv_items().size()));
  EXPECT_EQ(params.num_q_items, static_cast<int>(plan.q_items().size()));
  EXPECT_EQ(params.num_sequences, static_cast<int>(plan.sequences().size()));
  EXPECT_EQ(std::memcmp(bound.Staged(params.kv_items), plan.kv_items().data(),
                        plan.kv_items().size() * sizeof(WorkItem)),
            0);
  EXPECT_EQ(std::memcmp(bound.Staged(params.q_items), plan.q_items().data(),
                        plan.q_items().size() * sizeof(WorkItem)),
            0);
  EXPECT_EQ(std::memcmp(bound.Staged(params.sequences), plan.sequences().data(),
                        plan.sequences().size() * sizeof(BackwardSequence)),
            0);
  EXPECT_TRUE(bound.IsStagedZero(params.next_item, 4));
  EXPECT_TRUE(bound.IsStagedZero(plan.tile_counts(), 4));

  // No two of a plan's arrays overlap.
  std::vector<std::pair<int64_t, int64_t>> arrays;
  const auto add = [&](const auto* begin, int64_t count) {
    if (count > 0) arrays.emplace_back(bound.OffsetOf(begin), bound.OffsetOf(begin + count));
  };
  for (const BackwardSequence& s : plan.sequences()) {
    const SequenceParams& f = s.forward;
    EXPECT_EQ(s.row_stride % kLimitRows, 0);
    EXPECT_GE(s.row_stride, f.q_len);
    EXPECT_LT(s.row_stride, f.q_len + kLimitRows);
    EXPECT_TRUE(bound.IsScratch(s.rows, int64_t{f.num_q_heads} * s.row_stride));
    add(s.rows, int64_t{f.num_q_heads} * s.row_stride);
    ASSERT_NE(s.magnitudes, nullptr);
    EXPECT_TRUE(bound.IsStagedZero(s.magnitudes, 2 * f.num_kv_heads));
    add(s.magnitudes, 2 * f.num_kv_heads);
    EXPECT_EQ(s.limits != nullptr, f.key_norms != nullptr);
    EXPECT_EQ(s.reach != nullptr, f.key_norms != nullptr);
    EXPECT_EQ(f.key_norms != nullptr, f.q_len > 0 && f.kv_len > 0);
    if (s.limits != nullptr) {
      const int64_t limits = int64_t{f.num_q_heads} * s.row_stride / kLimitRows;
      EXPECT_TRUE(bound.IsScratch(s.limits, limits));
      add(s.limits, limits);
      EXPECT_TRUE(bound.IsStagedZero(s.reach, 2 * f.num_q_heads));
      add(s.reach, 2 * f.num_q_heads);
      add(f.key_norms, 2 * int64_t{f.num_kv_heads} * f.norm_tiles);
    }
    ASSERT_NE(s.dslope_partials, nullptr);
    ASSERT_NE(f.slopes, nullptr);
    EXPECT_LT(bound.OffsetOf(f.slopes), static_cast<int64_t>(plan.staging_bytes()));
  }
  std::sort(arrays.begin(), arrays.end());
  for (size_t n = 1; n < arrays.size(); ++n) EXPECT_LE(arrays[n - 1].second, arrays[n].first);
}

TEST(CudaBackwardPlanBind, TensorsAreThoseOfTheProblem) {
  AttentionCase c = Mixed();
  const BoundPlan bound({Case(7, 7), c}, Skipping::kWhenItPays);
  AttentionCase odd = c;
  odd.byte_offset = 2;
  const BoundPlan packed({Case(7, 7), odd}, Skipping::kWhenItPays);
  const int64_t q_row = int64_t{12} * 64 * 2;  // bytes
  const int64_t kv_row = int64_t{3} * 64 * 2;
  const BackwardSequence& last = bound.plan.sequences()[6];
  const int64_t q_begin = 65 + 1 + 3;
  const int64_t kv_begin = 65 + 2000 + 9;
  EXPECT_EQ(last.forward.q_len, 500);
  EXPECT_EQ(last.forward.problem, 1);
  EXPECT_EQ(last.d_o, Address<char>(2) + q_begin * q_row);
  EXPECT_EQ(last.dq, Address<char>(3) + q_begin * q_row);
  EXPECT_EQ(last.dk, Address<char>(4) + kv_begin * kv_row);
  EXPECT_EQ(last.dv, Address<char>(5) + kv_begin * kv_row);
  EXPECT_EQ(last.forward.lse, Address<float>(1) + q_begin * 12);

  // What is unaligned is read from a copy, and written where it is.
  const BackwardSequence& copy = packed.plan.sequences()[6];
  EXPECT_EQ(copy.dq, Address<char>(3, 2) + q_begin * q_row);
  EXPECT_EQ(packed.plan.pack_params().num_jobs, 4);
  const auto* const jobs = packed.Staged(packed.plan.pack_params().jobs);
  EXPECT_EQ(jobs[0].to, packed.plan.sequences()[1].forward.q);
  EXPECT_EQ(jobs[1].to, packed.plan.sequences()[1].forward.k);
  EXPECT_EQ(jobs[2].to, packed.plan.sequences()[1].forward.v);
  EXPECT_EQ(jobs[3].to, packed.plan.sequences()[1].d_o);
  EXPECT_EQ(jobs[3].from, Address<char>(2, 2));
  EXPECT_EQ(copy.d_o, static_cast<char*>(jobs[3].to) + q_begin * q_row);
  EXPECT_TRUE(packed.IsScratch(static_cast<const char*>(jobs[3].to), 569 * q_row));
}

TEST(CudaBackwardPlanBind, DOAloneMayBeUnaligned) {
  Batch batch({Case(500, 500)});
  const size_t plain = BackwardPlan::Create(batch.problems(), kHopperDevice)->workspace_bytes();
  batch.problems()[0].gradients.d_o = Address<void>(2, 8);
  const size_t packed = BackwardPlan::Create(batch.problems(), kHopperDevice)->workspace_bytes();
  const size_t tensors = size_t{4} * 500 * 2 * 64 * 2;
  EXPECT_GE(packed, plain + tensors);
  EXPECT_LE(packed, plain + tensors + 4096);
}

TEST(CudaBackwardPlanBind, OnlySixteenBitFloatsHaveMagnitudes) {
  AttentionCase c = Case(10, 10);
  c.dtype = DType::kBFloat16;
  const BoundPlan bound({c}, Skipping::kWhenItPays);
  EXPECT_EQ(bound.plan.sequences()[0].magnitudes, nullptr);
}

// Every partial gradient of a q item belongs to the sum of its slope and to no other.
TEST(CudaBackwardPlanSums, SlopesGatherTheirItems) {
  for (const bool per_sequence : {false, true}) {
    AttentionCase c = Mixed();
    c.slopes_per_sequence = per_sequence;
    const BoundPlan bound({c, c}, Skipping::kWhenItPays);
    const BackwardPlan& plan = bound.plan;
    const int num_sequences = 6;
    ASSERT_EQ(plan.sum_jobs().size(), size_t{2} * (per_sequence ? num_sequences : 1));
    ASSERT_EQ(plan.sum_params().num_jobs, static_cast<int>(plan.sum_jobs().size()));
    EXPECT_EQ(std::memcmp(bound.Staged(plan.sum_params().jobs), plan.sum_jobs().data(),
                          plan.sum_jobs().size() * sizeof(SumJob)),
              0);
    int64_t num_terms = 0;
    for (const SumJob& job : plan.sum_jobs()) {
      EXPECT_EQ(job.count, 12);
      EXPECT_EQ(job.factor, -1);
      EXPECT_TRUE(bound.IsScratch(job.from, job.count * job.terms));
      num_terms += job.count * job.terms;
    }
    EXPECT_EQ(num_terms, static_cast<int64_t>(plan.q_items().size()));
    std::vector<const float*> written;
    for (const WorkItem& item : plan.q_items()) {
      const BackwardSequence& s = plan.sequences()[item.sequence];
      const float* const partial =
          s.dslope_partials + item.head * s.dslope_stride + item.q_begin / portable::kQItemRows;
      written.push_back(partial);
      const int problem = item.sequence / num_sequences;
      const int local = item.sequence % num_sequences;
      const SumJob& job = plan.sum_jobs()[per_sequence ? item.sequence : problem];
      const float* const slope = job.from + item.head * job.outer_stride;
      EXPECT_GE(partial, slope);
      EXPECT_LT(partial, slope + job.terms * job.term_stride);
      EXPECT_EQ(job.to, Address<float>(6) + (per_sequence ? 12 * local : 0));
    }
    std::sort(written.begin(), written.end());
    EXPECT_EQ(std::adjacent_find(written.begin(), written.end()), written.end());
  }
}

// Slopes of a problem without queries, or without sequences, have a gradient all the same.
TEST(CudaBackwardPlanSums, SlopesThatNothingUses) {
  AttentionCase c = Case(0, 10);
  AttentionCase empty = Case(0, 0);
  empty.sequences.clear();
  for (const AttentionCase& unused : {c, empty}) {
    const BackwardPlan plan = *Plan({unused});
    ASSERT_EQ(plan.sum_jobs().size(), 1u);
    EXPECT_EQ(plan.sum_jobs()[0].count, 2);
    EXPECT_EQ(plan.sum_jobs()[0].terms, 0);
    EXPECT_EQ(plan.sum_jobs()[0].to, Address<float>(6));
  }
}

TEST(CudaBackwardPlanSums, FactorsThatHeadsShare) {
  AttentionCase c = Mixed();
  c.bias = BiasKind::kLowRank;
  c.rank = 5;
  for (const bool q_per_head : {false, true}) {
    for (const bool k_per_head : {false, true}) {
      c.phi_q_per_head = q_per_head;
      c.phi_k_per_head = k_per_head;
      const BoundPlan bound({c}, Skipping::kWhenItPays);
      const BackwardPlan& plan = bound.plan;
      EXPECT_EQ(plan.sum_jobs().size(), (q_per_head ? 0u : 1u) + (k_per_head ? 0u : 1u));
      const BackwardSequence& last = plan.sequences()[5];
      const int64_t row = int64_t{12} * 5;
      const int64_t q_begin = 65 + 1 + 3;
      const int64_t kv_begin = 65 + 2000 + 9;
      if (q_per_head) {
        EXPECT_EQ(last.dphi_q, Address<float>(7) + q_begin * row);
      } else {
        const SumJob& job = plan.sum_jobs()[0];
        EXPECT_EQ(job.to, Address<float>(7));
        EXPECT_EQ(last.dphi_q, job.from + q_begin * row);
        EXPECT_TRUE(bound.IsScratch(job.from, 569 * row));
        EXPECT_EQ(job.count, 569 * 5);
        EXPECT_EQ(job.factor, 1);
        // Value 3 of row 1: over the heads, `rank` apart.
        EXPECT_EQ(8 / job.inner * job.outer_stride + 8 % job.inner, row + 3);
        EXPECT_EQ(job.terms, 12);
        EXPECT_EQ(job.term_stride, 5);
      }
      if (k_per_head) {
        EXPECT_EQ(last.dphi_k, Address<float>(8) + kv_begin * row);
      } else {
        const SumJob& job = plan.sum_jobs().back();
        EXPECT_EQ(job.to, Address<float>(8));
        EXPECT_EQ(last.dphi_k, job.from + kv_begin * row);
        EXPECT_EQ(job.count, (kv_begin + 70) * 5);
      }
    }
  }
}

TEST(CudaBackwardPlanSums, NothingThatIsNotWanted) {
  AttentionCase low_rank = Case(70, 70);
  low_rank.bias = BiasKind::kLowRank;
  low_rank.phi_q_per_head = false;
  Batch batch({low_rank});
  batch.problems()[0].gradients.dphi_q = nullptr;
  batch.problems()[0].gradients.dphi_k = nullptr;
  const BackwardPlan plan = *BackwardPlan::Create(batch.problems(), kHopperDevice);
  EXPECT_TRUE(plan.sum_jobs().empty());
  EXPECT_EQ(plan.sequences()[0].dphi_q, nullptr);
  EXPECT_EQ(plan.sequences()[0].dphi_k, nullptr);
}

// An answer must not depend on the batch it came in (attention_backend.h).
TEST(CudaBackwardPlanBatch, OthersChangeNothingOfAProblem) {
  const std::vector<AttentionCase> cases = {Case(300, 3000), Case(9000, 9000), Case(17, 5000)};
  const BackwardPlan batch = *Plan(cases);
  for (size_t n = 0; n < cases.size(); ++n) {
    const BackwardPlan alone = *Plan({cases[n]});
    EXPECT_EQ(batch.group(), alone.group());
    EXPECT_EQ(batch.sum_jobs()[n].terms, alone.sum_jobs()[0].terms);
    EXPECT_EQ(batch.sequences()[n].dslope_stride, alone.sequences()[0].dslope_stride);
  }
}

KernelFamily FamilyOf(const AttentionCase& c, Family family = Family::kFastest,
                      const DeviceTraits& device = kHopperDevice) {
  const absl::StatusOr<BackwardPlan> plan = Plan({c}, {.family = family}, device);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan->family();
}

TEST(CudaBackwardPlanFamily, HopperServesWhatItCan) {
  AttentionCase c = Case(300, 300);
  EXPECT_EQ(FamilyOf(c), KernelFamily::kHopper);
  c.dtype = DType::kBFloat16;
  c.mask = {.causal = false, .left_window = 50};
  c.slopes = SlopeKind::kNegative;
  c.softmax_scale = -4096;
  EXPECT_EQ(FamilyOf(c), KernelFamily::kHopper);
  c.bias = BiasKind::kNone;
  c.head_dim = 7;
  c.byte_offset = 1;
  EXPECT_EQ(FamilyOf(c), KernelFamily::kHopper);
  EXPECT_EQ(FamilyOf(Case(1, 60000)), KernelFamily::kHopper);
}

TEST(CudaBackwardPlanFamily, OthersGetThePortableKernel) {
  const AttentionCase c = Case(300, 300);
  EXPECT_EQ(FamilyOf(c, Family::kPortable), KernelFamily::kPortable);
  EXPECT_EQ(FamilyOf(c, Family::kHopper, kAmpereDevice), KernelFamily::kPortable);
  constexpr DeviceTraits kBlackwell = {.ordinal = 0, .compute_capability = 100, .num_sms = 148};
  EXPECT_EQ(FamilyOf(c, Family::kHopper, kBlackwell), KernelFamily::kPortable);
  AttentionCase low_rank = c;
  low_rank.bias = BiasKind::kLowRank;
  EXPECT_EQ(FamilyOf(low_rank, Family::kHopper), KernelFamily::kPortable);
  for (const float scale : {3e38f, -3e38f, 1e-39f, 0.0f}) {
    Batch batch({c});
    batch.problems()[0].softmax_scale = scale;
    EXPECT_EQ(BackwardPlan::Create(batch.problems(), kHopperDevice)->family(),
              KernelFamily::kPortable)
        << scale;
  }
}

// The pass over the keys pays earlier than before the forward pass, whose scores are cheaper.
TEST(CudaBackwardPlanSkipping, OnlyWhereSlopesDecayAndEpsAllows) {
  const auto may_skip = [](const AttentionCase& c, Skipping skipping) {
    const BoundPlan bound({c}, skipping);
    return bound.plan.sequences()[0].forward.log_eps_per_side >
           -std::numeric_limits<float>::infinity();
  };
  AttentionCase c = Case(1000, 1000);
  EXPECT_TRUE(may_skip(c, Skipping::kWhereverPossible));
  EXPECT_FALSE(may_skip(c, Skipping::kWhenItPays)) << "pays at no such length";
  EXPECT_TRUE(may_skip(Case(30000, 30000), Skipping::kWhenItPays));
  c.eps = 0;
  EXPECT_FALSE(may_skip(c, Skipping::kWhereverPossible));
  c.eps = kDefaultEps;
  c.slopes = SlopeKind::kNegative;
  EXPECT_FALSE(may_skip(c, Skipping::kWhereverPossible));
}

}  // namespace
}  // namespace flashbias::cuda
