// kernels/work_estimate.h: what the batch policy may rely on.
#include "kernels/work_estimate.h"

#include <limits>

#include "gtest/gtest.h"
#include "kernels/skip_table.h"
#include "tests/support/attention_case.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using support::Materialise;
using support::SlopeKind;

AttentionCase Case(int64_t q_len, int64_t kv_len, bool causal = true) {
  AttentionCase c;
  c.num_q_heads = c.num_kv_heads = 4;
  c.head_dim = 1;
  c.sequences = {{.q_len = q_len, .kv_len = kv_len}};
  c.mask.causal = causal;
  c.bias = BiasKind::kNone;
  return c;
}

int64_t Estimate(const AttentionCase& c) { return EstimateScoreElements(Materialise(c).problem()); }

int64_t AdmittedElements(const AttentionCase& c) {
  const support::OwnedProblem owned = Materialise(c);
  int64_t count = 0;
  for (const Sequence& s : owned.problem().sequences) {
    for (int64_t row = 0; row < s.q_len; ++row) {
      const KeyRange keys = AdmittedKeys(s, owned.problem().mask, row);
      count += keys.end - keys.begin;
    }
  }
  return count * owned.problem().num_q_heads;
}

TEST(WorkEstimate, FullMaskIsTheProduct) {
  EXPECT_EQ(Estimate(Case(10, 20, false)), 4 * 10 * 20);
  EXPECT_EQ(Estimate(Case(1000, 300, false)), 4 * 1000 * 300);
}

TEST(WorkEstimate, CausalMaskAndWindowsAreClose) {
  for (const int64_t window : {0, 1, 50, 5000}) {
    for (const int64_t kv_len : {300, 1000, 3000}) {
      AttentionCase c = Case(1000, kv_len);
      c.mask.left_window = window;
      const auto exact = static_cast<double>(AdmittedElements(c));
      EXPECT_NEAR(static_cast<double>(Estimate(c)), exact, 0.2 * exact) << support::Describe(c);
    }
  }
}

TEST(WorkEstimate, ABackwardProblemCountsItsProducts) {
  AttentionCase c = Case(64, 100, false);
  c.direction = Direction::kBackward;
  EXPECT_EQ(Estimate(c), 7 * Estimate(Case(64, 100, false)) / 2);
}

TEST(WorkEstimate, IsAtLeastOne) {
  EXPECT_EQ(Estimate(Case(0, 0)), 1);
  EXPECT_EQ(Estimate(Case(5, 0)), 1);
  EXPECT_EQ(Estimate(Case(0, 5)), 1);
  AttentionCase no_keys = Case(5, 5);
  no_keys.sequences[0].query_start = -100;
  EXPECT_EQ(Estimate(no_keys), 1);
}

TEST(WorkEstimate, AddsUpOverSequences) {
  AttentionCase both = Case(100, 100);
  both.sequences.push_back({.q_len = 37, .kv_len = 80});
  EXPECT_EQ(Estimate(both), Estimate(Case(100, 100)) + Estimate(Case(37, 80)));
}

TEST(WorkEstimate, SlopesLowerItAndZeroEpsDoesNot) {
  AttentionCase c = Case(8192, 8192);
  const int64_t dense = Estimate(c);
  c.bias = BiasKind::kAlibi;
  c.slopes = SlopeKind::kSeed;
  EXPECT_LT(Estimate(c), dense / 2);
  c.eps = 0;
  EXPECT_EQ(Estimate(c), dense);
  c.eps = kDefaultEps;
  for (const SlopeKind flat : {SlopeKind::kZero, SlopeKind::kNegative, SlopeKind::kTiny}) {
    c.slopes = flat;
    EXPECT_EQ(Estimate(c), dense) << static_cast<int>(flat);
  }
}

TEST(WorkEstimate, SlopesOfEachSequenceCount) {
  AttentionCase c = Case(4096, 4096);
  c.sequences.push_back(c.sequences[0]);
  c.bias = BiasKind::kAlibi;
  c.slopes_per_sequence = true;
  support::OwnedProblem owned = Materialise(c);
  for (int64_t n = 0; n < owned.num_slopes(); ++n) owned.slopes()[n] = n < 4 ? 0.0f : 1.0f;
  const int64_t mixed = EstimateScoreElements(owned.problem());
  const int64_t dense = Estimate(Case(4096, 4096));
  EXPECT_GT(mixed, dense);
  EXPECT_LT(mixed, dense + dense / 4);
}

TEST(WorkEstimate, SaturatesInsteadOfOverflowing) {
  // Shapes alone are read, so no tensor stands behind these lengths.
  const Sequence sequence{.q_len = kMaxPosition, .kv_len = kMaxPosition};
  AttentionProblem problem;
  problem.num_q_heads = problem.num_kv_heads = 1;
  problem.head_dim = 1;
  problem.mask.causal = false;
  problem.sequences = absl::MakeConstSpan(&sequence, 1);
  EXPECT_EQ(EstimateScoreElements(problem), std::numeric_limits<int64_t>::max());
}

}  // namespace
}  // namespace flashbias
