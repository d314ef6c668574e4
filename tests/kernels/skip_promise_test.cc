// The promise of skipping: |o(eps) - o(0)| <= 2 eps max|v| in every element, on inputs made to
// break it, and statistics that say what was done.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using support::Describe;
using support::Materialise;
using support::OwnedProblem;
using support::Random;
using support::SlopeKind;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kHeads = 6;
constexpr int kHeadDim = 32;
constexpr int64_t kLength = 1500;

// fp32, one kv head per head: rows can be set freely, before Served() rounds what is not served.
AttentionCase BaseCase() {
  AttentionCase c;
  c.name = "adversarial";
  c.num_q_heads = c.num_kv_heads = kHeads;
  c.head_dim = kHeadDim;
  c.slopes = SlopeKind::kRange;
  c.sequences = {{.q_len = kLength, .kv_len = kLength}};
  return c;
}

float* RowOf(void* tensor, int64_t row, int head) {
  return static_cast<float*>(tensor) + (row * kHeads + head) * kHeadDim;
}

float Dot(const float* a, const float* b) {
  float sum = 0;
  for (int d = 0; d < kHeadDim; ++d) sum += a[d] * b[d];
  return sum;
}

// Sets k_j so that its logit with q_i, scale included, is `logit`.
void AlignKey(OwnedProblem* owned, int64_t i, int64_t j, int head, float logit) {
  const float* q = RowOf(owned->q(), i, head);
  float* k = RowOf(owned->k(), j, head);
  const float factor = logit / (owned->problem().softmax_scale * Dot(q, q));
  for (int d = 0; d < kHeadDim; ++d) k[d] = factor * q[d];
}

struct Attack {
  const char* name;
  std::function<void(OwnedProblem*)> apply;
};

// No attack writes a value beyond `largest`.
std::vector<Attack> Attacks(float largest) {
  return {
      {"none", [](OwnedProblem*) {}},
      {"huge_outlier_norms",
       [](OwnedProblem* owned) {
         Random random(5);
         for (int head = 0; head < kHeads; ++head) {
           for (int n = 0; n < 4; ++n) {
             float* k = RowOf(owned->k(), random.Below(kLength), head);
             for (int d = 0; d < kHeadDim; ++d) k[d] *= 300.0f;
           }
         }
       }},
      // A far key just strong enough to compete with the near ones, so its tile must be kept.
      {"far_spikes",
       [](OwnedProblem* owned) {
         Random random(6);
         for (int head = 0; head < kHeads; ++head) {
           for (int n = 0; n < 12; ++n) {
             const int64_t i = random.Between(kLength / 2, kLength - 1);
             const int64_t j = random.Below(i - 100);
             const float bias = owned->slopes()[head] * static_cast<float>(i - j);
             AlignKey(owned, i, j, head, bias + static_cast<float>(random.Between(-20, 6)));
           }
         }
       }},
      {"first_key_only",
       [](OwnedProblem* owned) {
         for (int head = 0; head < kHeads; ++head) {
           const float bias = owned->slopes()[head] * static_cast<float>(kLength - 1);
           AlignKey(owned, kLength - 1, 0, head, bias + 3.0f);
         }
       }},
      // The nearest keys are as unlikely as can be, which pushes the bound out.
      {"near_keys_repel",
       [](OwnedProblem* owned) {
         for (int head = 0; head < kHeads; ++head) {
           for (int64_t i = 0; i < kLength; i += 7) AlignKey(owned, i, i, head, -25.0f);
         }
       }},
      {"zero_queries",
       [](OwnedProblem* owned) {
         for (int head = 0; head < kHeads; ++head) {
           for (int64_t i = 0; i < kLength; i += 3) {
             std::fill_n(RowOf(owned->q(), i, head), kHeadDim, 0.0f);
           }
         }
       }},
      // Far keys that outweigh the near ones, in two tiles beside each other.
      {"strong_keys_ahead",
       [](OwnedProblem* owned) {
         for (int head = 0; head < kHeads; ++head) {
           for (int64_t i = 0; i < kLength; ++i) {
             std::fill_n(RowOf(owned->q(), i, head), kHeadDim, 0.0f);
             std::fill_n(RowOf(owned->k(), i, head), kHeadDim, 0.0f);
             RowOf(owned->q(), i, head)[0] = 4.0f;
             RowOf(owned->k(), i, head)[0] = i < 128 || i >= 384 ? 0.0f : (i < 256 ? 80.0f : 40.0f);
           }
         }
       }},
      {"growing_key_norms",
       [](OwnedProblem* owned) {
         for (int head = 0; head < kHeads; ++head) {
           for (int64_t j = 0; j < kLength; ++j) {
             const float factor = 0.02f * static_cast<float>(kLength - j);
             for (int d = 0; d < kHeadDim; ++d) RowOf(owned->k(), j, head)[d] *= factor;
           }
         }
       }},
      // The bound's scores overflow here; a bound that is not finite has to keep the tile.
      {"norms_that_overflow",
       [largest](OwnedProblem* owned) {
         for (int d = 0; d < kHeadDim; ++d) {
           RowOf(owned->k(), 10, 0)[d] = std::min(1e30f, largest);
           RowOf(owned->k(), 700, 1)[d] = std::min(1e19f, largest);
         }
         // Orthogonal enough: only the norm is huge.
         for (int64_t i = 0; i < kLength; ++i) {
           float* q = RowOf(owned->q(), i, 1);
           std::fill_n(q, kHeadDim, 0.0f);
           float* q0 = RowOf(owned->q(), i, 0);
           std::fill_n(q0, kHeadDim, 0.0f);
         }
       }},
  };
}

struct Setting {
  const char* name;
  Mask mask;
  int64_t query_start;
  int64_t key_start;
};

constexpr Setting kSettings[] = {
    {"causal", {.causal = true}, 0, 0},
    {"two_sided", {.causal = false}, 0, 0},
    {"between_tiles_two_sided", {.causal = false}, 64, 0},
    {"window", {.causal = true, .left_window = 700}, 0, 0},
    {"two_sided_window", {.causal = false, .left_window = 300}, 0, 0},
    {"keys_before", {.causal = true}, 900, 0},
    {"keys_before_two_sided", {.causal = false}, 2000, 0},
    {"keys_ahead_two_sided", {.causal = false}, 0, 1800},
    {"far_from_zero", {.causal = true}, int64_t{1} << 40, (int64_t{1} << 40) - 100},
};

// What two runs may differ by in an element of o besides eps, as a share of max|v|: sums in another
// order in fp32; the rounding of weights and outputs in 16 bits.
double RoundingOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 1.5e-3;
    case DType::kBFloat16:
      return 1.2e-2;
    case DType::kFloat32:
      break;
  }
  return 2e-6;
}

class SkipPromiseTest : public ::testing::TestWithParam<Setting> {
 protected:
  void TryEveryAttack(DType dtype);
};

TEST_P(SkipPromiseTest, HoldsUnderEveryAttack) {
  for (const DType dtype : SharpestDTypes()) {
    SCOPED_TRACE(Name(dtype));
    TryEveryAttack(dtype);
  }
}

void SkipPromiseTest::TryEveryAttack(DType dtype) {
  for (const Attack& attack : Attacks(dtype == DType::kFloat16 ? 1e4f : 1e30f)) {
    SCOPED_TRACE(attack.name);
    AttentionCase c = BaseCase();
    c.mask = GetParam().mask;
    c.sequences[0].query_start = GetParam().query_start;
    c.sequences[0].key_start = GetParam().key_start;
    OwnedProblem owned = Materialise(c);
    attack.apply(&owned);
    owned = owned.RoundedTo(dtype);
    const double max_v = support::MaxAbsV(owned.problem());

    owned.mutable_problem().eps = 0;
    const absl::StatusOr<ProblemStats> dense = support::RunAndWait(BackendUnderTest(), owned);
    ASSERT_TRUE(dense.ok()) << dense.status();
    ASSERT_EQ(owned.CheckOutputs(), "");
    EXPECT_EQ(dense->tiles_skipped, 0);
    std::vector<float> expected(static_cast<size_t>(owned.q_elements()));
    for (size_t n = 0; n < expected.size(); ++n) {
      expected[n] = LoadElement(dtype, owned.problem().o, static_cast<int64_t>(n));
    }

    for (const float eps : {kDefaultEps, 0x1p-16f, kMaxEps}) {
      owned.mutable_problem().eps = eps;
      const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
      ASSERT_TRUE(stats.ok()) << stats.status();
      ASSERT_EQ(owned.CheckOutputs(), "");
      EXPECT_EQ(stats->tiles_computed + stats->tiles_skipped, dense->tiles_computed);
      const double limit = (2 * static_cast<double>(eps) + RoundingOf(dtype)) * max_v;
      double worst = 0;
      for (size_t n = 0; n < expected.size(); ++n) {
        const float value = LoadElement(dtype, owned.problem().o, static_cast<int64_t>(n));
        const double error =
            std::fabs(static_cast<double>(value) - static_cast<double>(expected[n]));
        worst = error <= worst ? worst : error;
      }
      EXPECT_LE(worst, limit) << "eps " << eps << " max|v| " << max_v;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, SkipPromiseTest, ::testing::ValuesIn(kSettings),
                         [](const auto& param) { return std::string(param.param.name); });

TEST(SkipPromise, HoldsForSixteenBitInputs) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    AttentionCase c = BaseCase();
    c.dtype = dtype;
    c.eps = kMaxEps;
    OwnedProblem owned = Materialise(c);
    ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), owned).ok());
    EXPECT_TRUE(MatchesOracle(owned));
  }
}

TEST(SkipStats, SeedSlopesSkipAGoodShare) {
  AttentionCase c;
  c.dtype = DType::kFloat16;
  c.num_q_heads = c.num_kv_heads = 10;
  c.sequences = {{.q_len = 4096, .kv_len = 4096}};
  OwnedProblem owned = Materialise(c);
  const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
  ASSERT_TRUE(stats.ok()) << stats.status();
  const auto skipped = static_cast<double>(stats->tiles_skipped);
  const auto computed = static_cast<double>(stats->tiles_computed);
  EXPECT_GT(skipped / (skipped + computed), 0.3);
}

TEST(SkipStats, MoreEpsSkipsMore) {
  AttentionCase c = BaseCase();
  OwnedProblem owned = Materialise(Served(c));
  int64_t last = -1;
  for (const float eps : {0.0f, 0x1p-40f, kDefaultEps, kMaxEps}) {
    owned.mutable_problem().eps = eps;
    const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_GT(stats->tiles_skipped, last) << eps;
    last = std::max<int64_t>(stats->tiles_skipped, 0);
  }
}

TEST(SkipStats, TilesThatTheMaskExcludesAreNotCounted) {
  AttentionCase c = BaseCase();
  c.eps = 0;
  OwnedProblem causal = Materialise(Served(c));
  c.mask.causal = false;
  OwnedProblem full = Materialise(Served(c));
  c.mask = {.causal = true, .left_window = 64};
  OwnedProblem window = Materialise(Served(c));
  const auto tiles = [](OwnedProblem& owned) {
    const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
    EXPECT_TRUE(stats.ok()) << stats.status();
    return stats.value_or(ProblemStats{}).tiles_computed;
  };
  const int64_t all = tiles(full);
  const int64_t half = tiles(causal);
  EXPECT_GT(half, all / 2);
  EXPECT_LT(half, all * 3 / 4);
  EXPECT_LT(tiles(window), half / 2);

  AttentionCase one = BaseCase();
  one.sequences = {{.q_len = 1, .kv_len = 1}};
  OwnedProblem single = Materialise(Served(one));
  EXPECT_EQ(tiles(single), kHeads);
  one.sequences = {{.q_len = 1, .kv_len = 1, .query_start = -1}};
  OwnedProblem nothing = Materialise(Served(one));
  EXPECT_EQ(tiles(nothing), 0);
}

TEST(SkipStats, SlopesThatDoNotDecaySkipNothing) {
  for (const SlopeKind slopes : {SlopeKind::kZero, SlopeKind::kNegative, SlopeKind::kTiny}) {
    AttentionCase c = BaseCase();
    c.slopes = slopes;
    OwnedProblem owned = Materialise(Served(c));
    const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_EQ(stats->tiles_skipped, 0) << static_cast<int>(slopes);
  }
}

// Whatever stands in one head's tensors, the others' answers keep every bit.
TEST(NotFinite, StaysInItsHead) {
  AttentionCase c = BaseCase();
  OwnedProblem clean = Served(Materialise(c));
  const absl::StatusOr<ProblemStats> clean_stats = support::RunAndWait(BackendUnderTest(), clean);
  ASSERT_TRUE(clean_stats.ok());
  for (const float value : {std::nanf(""), kInfinity, -kInfinity}) {
    for (int tensor = 0; tensor < 3; ++tensor) {
      OwnedProblem owned = Materialise(c);
      void* const tensors[] = {owned.q(), owned.k(), owned.v()};
      RowOf(tensors[tensor], 77, 2)[5] = value;
      owned = Served(std::move(owned));
      const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
      ASSERT_TRUE(stats.ok()) << stats.status();
      EXPECT_EQ(stats->tiles_computed + stats->tiles_skipped,
                clean_stats->tiles_computed + clean_stats->tiles_skipped);
      for (int64_t row = 0; row < kLength; ++row) {
        for (int head = 0; head < kHeads; ++head) {
          if (head == 2) continue;
          for (int d = 0; d < kHeadDim; ++d) {
            ASSERT_EQ(support::OutputElement(owned.problem(), row, head, d),
                      support::OutputElement(clean.problem(), row, head, d))
                << "value " << value << " tensor " << tensor << " row " << row;
          }
          ASSERT_EQ(owned.problem().lse[row * kHeads + head],
                    clean.problem().lse[row * kHeads + head]);
        }
      }
    }
  }
}

// A NaN key is visible to the rows that see it and to no others.
TEST(NotFinite, CausalRowsBeforeABadKeyAreUntouched) {
  AttentionCase c = BaseCase();
  c.eps = 0;  // a NaN turns skipping off for its head; with eps 0 it is off in both runs
  OwnedProblem clean = Served(Materialise(c));
  ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), clean).ok());
  OwnedProblem owned = Materialise(c);
  RowOf(owned.k(), 1000, 3)[0] = std::nanf("");
  owned = Served(std::move(owned));
  ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), owned).ok());
  for (int64_t row = 0; row < 1000; ++row) {
    for (int d = 0; d < kHeadDim; ++d) {
      ASSERT_EQ(support::OutputElement(owned.problem(), row, 3, d),
                support::OutputElement(clean.problem(), row, 3, d))
          << row;
    }
  }
  EXPECT_TRUE(std::isnan(support::OutputElement(owned.problem(), 1200, 3, 0)));
}

}  // namespace
}  // namespace flashbias
