// What a batch, a neighbour, an address or a repetition may change in gradients (nothing), and what
// skipping and the form of a bias may change (little).
#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/reference_gradients.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare_gradients.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using support::Describe;
using support::Materialise;
using support::OwnedProblem;
using support::SlopeKind;

AttentionCase BigBackwardCase(uint64_t seed) {
  AttentionCase c = support::BigRandomCase(seed);
  c.direction = Direction::kBackward;
  return Served(c);
}

// Backward problems among forward ones.
TEST(GradientEquivalence, ABatchNeverChangesAGradient) {
  constexpr uint64_t kProblems = 24;
  std::vector<AttentionCase> cases;
  for (uint64_t seed = 0; seed < kProblems; ++seed) {
    cases.push_back(BigBackwardCase(seed));
    if (seed % 5 == 2) cases.back().direction = Direction::kForward;
  }
  std::vector<OwnedProblem> owned;
  std::vector<AttentionProblem> batch;
  for (const AttentionCase& c : cases) {
    owned.push_back(Materialise(c));
    batch.push_back(owned.back().problem());
  }
  const absl::StatusOr<std::vector<ProblemStats>> stats =
      support::RunAndWait(BackendUnderTest(), batch);
  ASSERT_TRUE(stats.ok()) << stats.status();
  for (size_t n = 0; n < cases.size(); ++n) {
    OwnedProblem alone = Materialise(cases[n]);
    const absl::StatusOr<ProblemStats> own = support::RunAndWait(BackendUnderTest(), alone);
    ASSERT_TRUE(own.ok()) << own.status();
    EXPECT_EQ(owned[n].CheckOutputs(), "") << Describe(cases[n]);
    EXPECT_TRUE(owned[n].OutputBytes() == alone.OutputBytes()) << Describe(cases[n]);
    EXPECT_EQ((*stats)[n].tiles_computed, own->tiles_computed) << Describe(cases[n]);
    EXPECT_EQ((*stats)[n].tiles_skipped, own->tiles_skipped) << Describe(cases[n]);
  }
}

TEST(GradientEquivalence, AHundredRunsGiveTheSameBits) {
  constexpr int kRuns = support::kSlowBuild ? 10 : 100;
  for (const BiasKind bias : {BiasKind::kAlibi, BiasKind::kLowRank}) {
    AttentionCase c;
    c.direction = Direction::kBackward;
    c.num_q_heads = 4;
    c.bias = bias;
    c.phi_q_per_head = c.phi_k_per_head = false;
    c.sequences = {{.q_len = 300, .kv_len = 400}, {.q_len = 70, .kv_len = 70}};
    OwnedProblem owned = Materialise(Served(c));
    std::string first;
    for (int run = 0; run < kRuns; ++run) {
      ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), owned).ok());
      if (run == 0) first = owned.OutputBytes();
      ASSERT_TRUE(owned.OutputBytes() == first) << "run " << run << " of " << Describe(c);
    }
  }
}

TEST(GradientEquivalence, ConcurrentRunsDoNotDisturbEachOther) {
  constexpr uint64_t kThreads = 4;
  std::vector<std::string> expected;
  for (uint64_t seed = 0; seed < kThreads; ++seed) {
    expected.push_back(OutputBytesOf(BackendUnderTest(), BigBackwardCase(seed)));
  }
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < kThreads; ++seed) {
    threads.emplace_back([&, seed] {
      OwnedProblem owned = Materialise(BigBackwardCase(seed));
      for (int repeat = 0; repeat < 5; ++repeat) {
        EXPECT_TRUE(support::RunAndWait(BackendUnderTest(), owned).ok());
        EXPECT_TRUE(owned.OutputBytes() == expected[seed]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(GradientEquivalence, AddressesChangeNothing) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    AttentionCase c = BigBackwardCase(seed);
    c.byte_offset = 0;
    const std::string aligned = OutputBytesOf(BackendUnderTest(), c);
    c.byte_offset = 3;
    EXPECT_TRUE(OutputBytesOf(BackendUnderTest(), c) == aligned) << Describe(c);
  }
}

// dq, dk and dv are the same bits whether the bias's gradient is wanted or not.
TEST(GradientEquivalence, AWantedBiasGradientChangesNothingElse) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    AttentionCase c = BigBackwardCase(seed);
    c.want_bias_gradient = false;
    const std::string without = OutputBytesOf(BackendUnderTest(), c);
    c.want_bias_gradient = true;
    const std::string with = OutputBytesOf(BackendUnderTest(), c);
    ASSERT_GE(with.size(), without.size());
    EXPECT_TRUE(with.substr(0, without.size()) == without) << Describe(c);
  }
}

// ||a - b|| / ||b||
double RelativeDifference(DType dtype, const void* a, const void* b, int64_t elements) {
  double difference = 0;
  double norm = 0;
  for (int64_t n = 0; n < elements; ++n) {
    const auto x = static_cast<double>(LoadElement(dtype, a, n));
    const auto y = static_cast<double>(LoadElement(dtype, b, n));
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return std::sqrt(difference / norm);
}

double RelativeDifference(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0;
  double norm = 0;
  for (size_t n = 0; n < b.size(); ++n) {
    difference += (a[n] - b[n]) * (a[n] - b[n]);
    norm += b[n] * b[n];
  }
  return std::sqrt(difference / norm);
}

// What is left out is counted, is not little, and is not seen in any gradient.
TEST(GradientEquivalence, SkippingLeavesOutTilesAndNoGradient) {
  for (const bool causal : {true, false}) {
    AttentionCase c;
    c.direction = Direction::kBackward;
    c.mask.causal = causal;
    c.slopes = SlopeKind::kStandard;
    c.num_q_heads = 4;
    c.sequences = {{.q_len = 1500, .kv_len = 1500}};
    c.eps = 0;
    OwnedProblem dense = Materialise(Served(c));
    c.eps = kDefaultEps;
    OwnedProblem skipping = Materialise(Served(c));
    const auto all = support::RunAndWait(BackendUnderTest(), dense);
    const auto some = support::RunAndWait(BackendUnderTest(), skipping);
    ASSERT_TRUE(all.ok() && some.ok());
    EXPECT_EQ(all->tiles_skipped, 0);
    EXPECT_EQ(some->tiles_computed + some->tiles_skipped, all->tiles_computed);
    EXPECT_GT(some->tiles_skipped, all->tiles_computed / 8);
    const Gradients& a = skipping.problem().gradients;
    const Gradients& b = dense.problem().gradients;
    const DType dtype = dense.problem().dtype;
    const double limit = support::GradientLimit(dtype) / 4;
    EXPECT_LE(RelativeDifference(dtype, a.dq, b.dq, dense.q_elements()), limit);
    EXPECT_LE(RelativeDifference(dtype, a.dk, b.dk, dense.kv_elements()), limit);
    EXPECT_LE(RelativeDifference(dtype, a.dv, b.dv, dense.kv_elements()), limit);
    EXPECT_LE(RelativeDifference(DType::kFloat32, a.dslopes, b.dslopes, dense.num_slopes()), limit);
  }
}

// Two problems, each with some of the keys and with o and lse over all of them, as they are after
// the partial results of several devices were merged.
TEST(GradientEquivalence, ShardsOfKeysAddUp) {
  constexpr int64_t kLength = 300;
  constexpr int64_t kSplit = 130;
  for (const DType dtype : SharpestDTypes()) {
    AttentionCase c;
    c.direction = Direction::kBackward;
    c.dtype = dtype;
    c.sequences = {{.q_len = kLength, .kv_len = kLength}};
    OwnedProblem whole = Materialise(c);
    const ReferenceGradients expected = ComputeReferenceGradients(whole.problem());
    const int64_t row = int64_t{c.num_kv_heads} * c.head_dim;
    std::vector<double> dq(expected.dq.size());
    std::vector<double> dslopes(expected.dslopes.size());
    std::vector<double> dk;
    std::vector<double> dv;
    for (const auto& [begin, end] : {std::pair{int64_t{0}, kSplit}, std::pair{kSplit, kLength}}) {
      AttentionCase part = c;
      part.sequences = {
          {.q_len = kLength, .kv_len = end - begin, .query_start = 0, .key_start = begin}};
      OwnedProblem shard = Materialise(part);
      const auto copy = [&](const void* from, int64_t first, void* to, int64_t elements) {
        for (int64_t n = 0; n < elements; ++n) {
          StoreElement(dtype, to, n, LoadElement(dtype, from, first + n));
        }
      };
      copy(whole.q(), 0, shard.q(), whole.q_elements());
      copy(whole.d_o(), 0, shard.d_o(), whole.q_elements());
      copy(whole.o_input(), 0, shard.o_input(), whole.q_elements());
      copy(whole.k(), begin * row, shard.k(), (end - begin) * row);
      copy(whole.v(), begin * row, shard.v(), (end - begin) * row);
      std::copy_n(whole.lse_input(), whole.lse_elements(), shard.lse_input());
      ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), shard).ok());
      const Gradients& g = shard.problem().gradients;
      for (size_t n = 0; n < dq.size(); ++n) {
        dq[n] += static_cast<double>(LoadElement(dtype, g.dq, static_cast<int64_t>(n)));
      }
      for (size_t n = 0; n < dslopes.size(); ++n) dslopes[n] += static_cast<double>(g.dslopes[n]);
      for (int64_t n = 0; n < (end - begin) * row; ++n) {
        dk.push_back(static_cast<double>(LoadElement(dtype, g.dk, n)));
        dv.push_back(static_cast<double>(LoadElement(dtype, g.dv, n)));
      }
    }
    const double limit = 2 * support::GradientLimit(dtype);
    EXPECT_LE(RelativeDifference(dq, expected.dq), limit) << Name(dtype);
    EXPECT_LE(RelativeDifference(dk, expected.dk), limit) << Name(dtype);
    EXPECT_LE(RelativeDifference(dv, expected.dv), limit) << Name(dtype);
    // Rounding of o meets distances of the farther keys, here some 100.
    const double floor = 100 * std::sqrt(double{kLength}) * support::RelativeErrorLimit(dtype);
    for (size_t n = 0; n < dslopes.size(); ++n) {
      EXPECT_NEAR(dslopes[n], expected.dslopes[n], limit * std::fabs(expected.dslopes[n]) + floor)
          << Name(dtype);
    }
  }
}

// Under a causal mask -s |i - j| is <s [-i, 1], [1, j]>, whose derivative by s is
// <[-i, 1], dphi_q_i> summed over the rows.
TEST(GradientEquivalence, SlopesEqualRankTwoFactors) {
  constexpr int kHeads = 4;
  constexpr int64_t kLength = 300;
  for (const DType dtype : SharpestDTypes()) {
    AttentionCase c;
    c.direction = Direction::kBackward;
    c.dtype = dtype;
    c.num_q_heads = c.num_kv_heads = kHeads;
    c.slopes = SlopeKind::kRange;
    c.sequences = {{.q_len = kLength, .kv_len = kLength}};
    OwnedProblem slopes = Materialise(c);
    c.bias = BiasKind::kLowRank;
    c.phi_k_per_head = false;
    OwnedProblem factors = Materialise(c);
    auto* phi_q = static_cast<float*>(factors.phi_q());
    auto* phi_k = static_cast<float*>(factors.phi_k());
    for (int64_t i = 0; i < kLength; ++i) {
      for (int head = 0; head < kHeads; ++head) {
        phi_q[(i * kHeads + head) * 2] = -slopes.slopes()[head] * static_cast<float>(i);
        phi_q[(i * kHeads + head) * 2 + 1] = slopes.slopes()[head];
      }
      phi_k[i * 2] = 1;
      phi_k[i * 2 + 1] = static_cast<float>(i);
    }
    // The other random numbers are the same, but d_o, which is drawn after the factors.
    for (int64_t n = 0; n < slopes.q_elements(); ++n) {
      StoreElement(dtype, factors.d_o(), n, LoadElement(dtype, slopes.d_o(), n));
    }
    factors.SetForwardResults();
    ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), slopes).ok());
    ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), factors).ok());
    const Gradients& a = factors.problem().gradients;
    const Gradients& b = slopes.problem().gradients;
    const double limit = 2 * support::GradientLimit(dtype) + 0x1p-23 * kLength;
    EXPECT_LE(RelativeDifference(dtype, a.dq, b.dq, slopes.q_elements()), limit);
    EXPECT_LE(RelativeDifference(dtype, a.dk, b.dk, slopes.kv_elements()), limit);
    EXPECT_LE(RelativeDifference(dtype, a.dv, b.dv, slopes.kv_elements()), limit);
    for (int head = 0; head < kHeads; ++head) {
      double of_factors = 0;
      double terms = 0;
      for (int64_t i = 0; i < kLength; ++i) {
        const float* dphi_q = a.dphi_q + (i * kHeads + head) * 2;
        const double term = static_cast<double>(dphi_q[1]) -
                            static_cast<double>(i) * static_cast<double>(dphi_q[0]);
        of_factors += term;
        // Of the two, each is large and rounded.
        terms += std::pow(static_cast<double>(i), 2);
      }
      EXPECT_NEAR(
          of_factors, static_cast<double>(b.dslopes[head]),
          4 * support::RelativeErrorLimit(dtype) * (std::fabs(of_factors) + std::sqrt(terms)))
          << Name(dtype) << " head " << head;
    }
  }
}

}  // namespace
}  // namespace flashbias
