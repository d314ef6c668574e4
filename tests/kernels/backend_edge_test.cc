// Inputs at the ends of their ranges, and shapes that meet in one tile what usually does not.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
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
using support::OutputElement;
using support::OwnedProblem;
using support::RunAndWait;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

AttentionCase FewHeads(int64_t q_len, int64_t kv_len) {
  AttentionCase c;
  c.sequences = {{.q_len = q_len, .kv_len = kv_len}};
  return c;
}

// Rows of two heads of one key/value head share a row group; a window leaves a hole between them.
TEST(BackendEdge, HeadsThatShareARowGroupUnderAWindow) {
  for (const BiasKind bias : {BiasKind::kNone, BiasKind::kAlibi, BiasKind::kLowRank}) {
    for (const int64_t window : {1, 3, 40}) {
      for (const int64_t q_len : {67, 80, 95}) {
        AttentionCase c = FewHeads(q_len, q_len + 63);
        c.bias = bias;
        c.phi_k_per_head = false;
        c.num_kv_heads = 1;
        c.mask.left_window = window;
        OwnedProblem owned = Materialise(Served(c));
        ASSERT_TRUE(RunAndWait(BackendUnderTest(), owned).ok());
        EXPECT_TRUE(MatchesOracle(owned)) << Describe(c);
      }
    }
  }
}

// A rank-1 bias that hides padding keys, as additive masks do. `first_hidden` also moves the hidden
// keys over the tile's middle and over the key nearest to the queries.
TEST(BackendEdge, LowRankBiasThatHidesKeys) {
  for (const float hidden : {-1e4f, -1e9f}) {
    for (const int64_t first_hidden : {1, 21, 40, 63}) {
      for (const int64_t kv_len : {64, 200}) {
        AttentionCase c = FewHeads(20, kv_len);
        c.bias = BiasKind::kLowRank;
        c.rank = 1;
        c.mask.causal = false;
        OwnedProblem owned = Materialise(Served(c));
        auto* phi_q = static_cast<float*>(owned.phi_q());
        auto* phi_k = static_cast<float*>(owned.phi_k());
        std::fill_n(phi_q, owned.phi_q_elements(), 1.0f);
        for (int64_t n = 0; n < owned.phi_k_elements(); ++n) {
          phi_k[n] = n / c.num_q_heads < first_hidden ? 0.0f : hidden;
        }
        ASSERT_TRUE(RunAndWait(BackendUnderTest(), owned).ok());
        EXPECT_TRUE(MatchesOracle(owned)) << hidden << " from " << first_hidden;
      }
    }
  }
}

// ALiBi of either sign as rank-2 factors of large positions.
TEST(BackendEdge, LowRankFactorsOfEitherSignAtLargePositions) {
  for (const float slope : {0.9f, -0.9f, 0.01f, -0.01f}) {
    AttentionCase c = FewHeads(100, 9000);
    c.dtype = DType::kFloat16;
    c.bias = BiasKind::kLowRank;
    c.rank = 2;
    OwnedProblem owned = Materialise(c);
    auto* phi_q = static_cast<float*>(owned.phi_q());
    auto* phi_k = static_cast<float*>(owned.phi_k());
    for (int64_t n = 0; n < owned.phi_q_elements() / 2; ++n) {
      phi_q[2 * n] = -slope * static_cast<float>(8900 + n / c.num_q_heads);
      phi_q[2 * n + 1] = slope;
    }
    for (int64_t n = 0; n < owned.phi_k_elements() / 2; ++n) {
      phi_k[2 * n] = 1;
      phi_k[2 * n + 1] = static_cast<float>(n / c.num_q_heads);
    }
    ASSERT_TRUE(RunAndWait(BackendUnderTest(), owned).ok());
    // A tile's factors span 63 positions, whose fp32 rounding shows in lse.
    EXPECT_TRUE(MatchesOracle(owned, 0x1p-23 * 63)) << "slope " << slope;
  }
}

TEST(BackendEdge, NanInAFactorStaysWithItsKey) {
  AttentionCase c = FewHeads(64, 64);
  c.bias = BiasKind::kLowRank;
  OwnedProblem owned = Materialise(Served(c));
  const int64_t width = int64_t{c.num_q_heads} * c.rank;
  static_cast<float*>(owned.phi_k())[32 * width] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_TRUE(RunAndWait(BackendUnderTest(), owned).ok());
  for (int64_t row = 0; row < 64; ++row) {
    EXPECT_EQ(std::isnan(OutputElement(owned.problem(), row, 0, 0)), row >= 32) << row;
    EXPECT_FALSE(std::isnan(OutputElement(owned.problem(), row, 1, 0))) << row;
  }
}

// |k|^2 is 0 in fp32, |k| is not: a far key with all the mass must not be skipped.
TEST(BackendEdge, NormsWhoseSquaresUnderflow) {
  constexpr float kTiny = 1e-23f;
  for (const bool tiny_keys : {true, false}) {
    AttentionCase c = FewHeads(200, 1000);
    c.softmax_scale = 1e25f;
    OwnedProblem owned = Materialise(c);
    std::fill_n(static_cast<float*>(owned.q()), owned.q_elements(), tiny_keys ? 1.0f : kTiny);
    auto* k = static_cast<float*>(owned.k());
    std::fill_n(k, owned.kv_elements(), 0.0f);
    const int64_t width = int64_t{c.num_kv_heads} * c.head_dim;
    std::fill_n(k + 100 * width, width, tiny_keys ? kTiny : 1.0f);
    // fp16 cannot hold such values.
    if (ServedDType(c.dtype) != c.dtype) owned = owned.RoundedTo(DType::kBFloat16);
    ASSERT_TRUE(RunAndWait(BackendUnderTest(), owned).ok());
    EXPECT_TRUE(MatchesOracle(owned, 1e-4)) << tiny_keys;
  }
}

TEST(BackendEdge, RowsWithoutKeysAreZeroBesideInfiniteValues) {
  const AttentionCase c = FewHeads(6, 3);
  OwnedProblem owned = Materialise(c);
  static_cast<float*>(owned.v())[0] = kInfinity;
  owned = Served(std::move(owned));
  ASSERT_TRUE(RunAndWait(BackendUnderTest(), owned).ok());
  for (int64_t row = 0; row < 3; ++row) {
    for (int d = 0; d < c.head_dim; ++d) {
      EXPECT_EQ(OutputElement(owned.problem(), row, 0, d), 0) << row;
    }
    EXPECT_EQ(owned.problem().lse[row * c.num_q_heads], -kInfinity);
  }
}

TEST(BackendEdge, TheSteepestSlopes) {
  for (const bool causal : {true, false}) {
    AttentionCase c = FewHeads(50, 50);
    c.mask.causal = causal;
    OwnedProblem owned = Materialise(Served(c));
    owned.slopes()[0] = std::numeric_limits<float>::max();
    owned.slopes()[1] = -std::numeric_limits<float>::max();
    ASSERT_TRUE(RunAndWait(BackendUnderTest(), owned).ok());
    for (int64_t row = 0; row < 50; ++row) {
      for (int head = 0; head < 2; ++head) {
        EXPECT_TRUE(std::isfinite(OutputElement(owned.problem(), row, head, 0))) << row;
      }
    }
  }
}

// With q = 0 the mass of what is dropped is a geometric series, which the bound meets up to its own
// slack and one tile: were the bound looser or tighter than it claims, this would show.
TEST(BackendEdge, TheSkipBoundIsTight) {
  constexpr float kSlope = 0x1p-8f;
  constexpr float kEps = kMaxEps;
  for (const bool causal : {true, false}) {
    AttentionCase c = FewHeads(8000, 8000);
    c.num_q_heads = c.num_kv_heads = 1;
    c.mask.causal = causal;
    c.head_dim = 8;
    OwnedProblem owned = Materialise(c);
    std::fill_n(static_cast<float*>(owned.q()), owned.q_elements(), 0.0f);
    owned.slopes()[0] = kSlope;
    owned = Served(std::move(owned));
    const double rounding = 2 * LseAllowance(owned.problem().dtype);
    double largest = 0;
    std::vector<float> exact;
    for (const float eps : {0.0f, kEps}) {
      owned.mutable_problem().eps = eps;
      ASSERT_TRUE(RunAndWait(BackendUnderTest(), owned).ok());
      const float* lse = owned.problem().lse;
      if (eps == 0) {
        exact.assign(lse, lse + 8000);
        continue;
      }
      for (int64_t row = 0; row < 8000; ++row) {
        const double dropped = -std::expm1(static_cast<double>(lse[row]) - exact[row]);
        EXPECT_LE(dropped, kEps + 2e-6 + rounding) << row;
        largest = std::max(largest, dropped);
      }
    }
    // A GPU's tiles are larger, and so is what the bound leaves in.
    EXPECT_GE(largest, rounding == 0 ? kEps / 2 : kEps / 4) << (causal ? "causal" : "full");
  }
}

}  // namespace
}  // namespace flashbias
