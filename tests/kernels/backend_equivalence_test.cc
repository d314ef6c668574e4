// Two ways to the same answer: what a batch, an address or a bias's form may change (nothing).
#include <cmath>
#include <string>
#include <thread>
#include <vector>

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
using support::SlopeKind;

AttentionCase BigRandomCase(uint64_t seed) { return Served(support::BigRandomCase(seed)); }

TEST(Equivalence, ABatchNeverChangesAnAnswer) {
  constexpr uint64_t kProblems = 24;
  std::vector<OwnedProblem> owned;
  std::vector<AttentionProblem> batch;
  for (uint64_t seed = 0; seed < kProblems; ++seed) {
    owned.push_back(Materialise(BigRandomCase(seed)));
    batch.push_back(owned.back().problem());
  }
  const absl::StatusOr<std::vector<ProblemStats>> stats =
      support::RunAndWait(BackendUnderTest(), batch);
  ASSERT_TRUE(stats.ok()) << stats.status();
  for (uint64_t seed = 0; seed < kProblems; ++seed) {
    const AttentionCase c = BigRandomCase(seed);
    OwnedProblem alone = Materialise(c);
    const absl::StatusOr<ProblemStats> own = support::RunAndWait(BackendUnderTest(), alone);
    ASSERT_TRUE(own.ok()) << own.status();
    EXPECT_EQ(owned[seed].CheckOutputs(), "");
    EXPECT_TRUE(owned[seed].OutputBytes() == alone.OutputBytes()) << Describe(c);
    EXPECT_EQ((*stats)[seed].tiles_computed, own->tiles_computed) << Describe(c);
    EXPECT_EQ((*stats)[seed].tiles_skipped, own->tiles_skipped) << Describe(c);
  }
}

// Neighbours that fill a device, or that another kernel must serve, must not change how a problem
// is cut.
TEST(Equivalence, ABigOrOddNeighbourNeverChangesAnAnswer) {
  std::vector<AttentionCase> small(3);
  small[0].sequences = {{.q_len = 1, .kv_len = 3000}};
  small[0].num_q_heads = 8;
  small[1].sequences = {{.q_len = 100, .kv_len = 1500}};
  small[2].sequences = {{.q_len = 70, .kv_len = 70}};
  AttentionCase big;
  big.num_q_heads = big.num_kv_heads = 16;
  big.sequences = {{.q_len = support::kSlowBuild ? 200 : 1000, .kv_len = 1000}};
  AttentionCase odd;
  odd.softmax_scale = -0.1f;
  for (AttentionCase c : small) {
    c = Served(c);
    const std::string alone = OutputBytesOf(BackendUnderTest(), c);
    for (const AttentionCase& neighbour : {big, odd}) {
      OwnedProblem owned = Materialise(c);
      OwnedProblem other = Materialise(Served(neighbour));
      const AttentionProblem batch[] = {owned.problem(), other.problem()};
      ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), batch).ok());
      EXPECT_TRUE(owned.OutputBytes() == alone) << Describe(c) << " beside " << Describe(neighbour);
    }
  }
}

TEST(Equivalence, RunsRepeatBitByBit) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const AttentionCase c = BigRandomCase(seed);
    OwnedProblem owned = Materialise(c);
    std::string first;
    for (int repeat = 0; repeat < 4; ++repeat) {
      ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), owned).ok());
      if (repeat == 0) first = owned.OutputBytes();
      EXPECT_TRUE(owned.OutputBytes() == first) << Describe(c);
    }
  }
}

TEST(Equivalence, ConcurrentRunsDoNotDisturbEachOther) {
  constexpr uint64_t kThreads = 4;
  std::vector<std::string> expected;
  for (uint64_t seed = 0; seed < kThreads; ++seed) {
    expected.push_back(OutputBytesOf(BackendUnderTest(), BigRandomCase(seed)));
  }
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < kThreads; ++seed) {
    threads.emplace_back([&, seed] {
      for (int repeat = 0; repeat < 5; ++repeat) {
        EXPECT_TRUE(OutputBytesOf(BackendUnderTest(), BigRandomCase(seed)) == expected[seed]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Equivalence, AddressesAndWantedLseChangeNothing) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    AttentionCase c = BigRandomCase(seed);
    c.byte_offset = 0;
    c.want_lse = true;
    OwnedProblem with_lse = Materialise(c);
    ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), with_lse).ok());
    const std::string aligned = with_lse.OutputBytes();
    c.byte_offset = 3;
    EXPECT_TRUE(OutputBytesOf(BackendUnderTest(), c) == aligned) << Describe(c);
    c.want_lse = false;
    const std::string o = OutputBytesOf(BackendUnderTest(), c);
    EXPECT_TRUE(o == aligned.substr(0, o.size())) << Describe(c);
  }
}

// ||a - b|| / ||a|| over every element of o.
double RelativeDifference(const AttentionProblem& a, const AttentionProblem& b) {
  double difference = 0;
  double norm = 0;
  const int64_t elements = a.total_q * a.num_q_heads * a.head_dim;
  for (int64_t n = 0; n < elements; ++n) {
    const auto x = static_cast<double>(LoadElement(a.dtype, a.o, n));
    const auto y = static_cast<double>(LoadElement(b.dtype, b.o, n));
    difference += (x - y) * (x - y);
    norm += x * x;
  }
  return std::sqrt(difference / norm);
}

class AlibiFormsTest : public ::testing::TestWithParam<int64_t> {};

// Under a causal mask -s |i - j| is <s [-i, 1], [1, j]>. In fp32 factors the two products reach s N
// and are rounded there, which the second tolerance grants; the slopes' form has no such loss.
TEST_P(AlibiFormsTest, SlopesEqualRankTwoFactors) {
  const int64_t length = GetParam();
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    if (ServedDType(dtype) != dtype) continue;
    AttentionCase c;
    c.name = "forms";
    c.dtype = dtype;
    c.num_q_heads = c.num_kv_heads = 4;
    c.slopes = SlopeKind::kRange;
    c.sequences = {{.q_len = length, .kv_len = length}};
    OwnedProblem slopes = Materialise(c);
    c.bias = BiasKind::kLowRank;
    c.rank = 2;
    c.phi_q_per_head = true;
    c.phi_k_per_head = false;
    OwnedProblem factors = Materialise(c);
    for (int64_t i = 0; i < length; ++i) {
      const auto position = static_cast<float>(i);
      for (int head = 0; head < 4; ++head) {
        const float slope = slopes.slopes()[head];
        StoreElement(DType::kFloat32, factors.phi_q(), (i * 4 + head) * 2, -slope * position);
        StoreElement(DType::kFloat32, factors.phi_q(), (i * 4 + head) * 2 + 1, slope);
      }
      StoreElement(DType::kFloat32, factors.phi_k(), i * 2, 1.0f);
      StoreElement(DType::kFloat32, factors.phi_k(), i * 2 + 1, position);
    }
    ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), slopes).ok());
    ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), factors).ok());
    EXPECT_EQ(slopes.CheckOutputs(), "");
    EXPECT_EQ(factors.CheckOutputs(), "");
    const double rounding = 0x1p-23 * static_cast<double>(length);
    EXPECT_LE(RelativeDifference(slopes.problem(), factors.problem()),
              (dtype == DType::kFloat32 ? rounding : 0) + 2 * support::RelativeErrorLimit(dtype))
        << Name(dtype);
    for (int64_t n = 0; n < slopes.lse_elements(); ++n) {
      const auto lse = static_cast<double>(slopes.problem().lse[n]);
      ASSERT_NEAR(static_cast<double>(factors.problem().lse[n]), lse,
                  1e-5 + rounding + 2 * LseAllowance(dtype))
          << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Lengths, AlibiFormsTest,
                         ::testing::Values(1, 64, 129, 600, support::kSlowBuild ? 700 : 8191));

TEST(Equivalence, ZeroSlopesEqualNoBias) {
  AttentionCase c;
  c.dtype = ServedDType(DType::kFloat32);
  c.sequences = {{.q_len = 150, .kv_len = 200}};
  c.slopes = SlopeKind::kZero;
  OwnedProblem zero = Materialise(c);
  c.bias = BiasKind::kNone;
  OwnedProblem none = Materialise(c);
  ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), zero).ok());
  ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), none).ok());
  EXPECT_LE(RelativeDifference(zero.problem(), none.problem()),
            support::RelativeErrorLimit(c.dtype));
}

}  // namespace
}  // namespace flashbias
