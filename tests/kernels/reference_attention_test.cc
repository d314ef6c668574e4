// The oracle itself: against the golden vectors, which were computed apart from this project, and
// against cases that can be solved by hand.
#include "kernels/reference/reference_attention.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "tests/support/attention_case.h"
#include "tests/support/golden.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using support::GoldenCase;
using support::Materialise;
using support::OwnedProblem;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(ReferenceAttention, GoldenVectors) {
  const absl::StatusOr<std::vector<GoldenCase>> cases = support::LoadGoldenCases();
  ASSERT_TRUE(cases.ok()) << cases.status();
  for (const GoldenCase& golden : *cases) {
    SCOPED_TRACE(golden.name);
    const AttentionProblem& problem = golden.owned.problem();
    for (int64_t row = 0; row < problem.total_q; ++row) {
      for (int head = 0; head < problem.num_q_heads; ++head) {
        const ReferenceRow result = ReferenceAttentionRow(problem, 0, row, head);
        const int64_t at = row * problem.num_q_heads + head;
        for (int d = 0; d < problem.head_dim; ++d) {
          ASSERT_NEAR(result.o[d], golden.o[at * problem.head_dim + d], 1e-6);
        }
        if (std::isinf(golden.lse[at])) {
          ASSERT_EQ(result.lse, -kInfinity);
        } else {
          ASSERT_NEAR(result.lse, golden.lse[at], 1e-6);
        }
      }
    }
  }
}

TEST(ReferenceAttention, OneKeyGivesItsValueAndItsLogit) {
  AttentionCase c;
  c.head_dim = 2;
  c.sequences = {{.q_len = 1, .kv_len = 1, .query_start = 5, .key_start = 1}};
  c.softmax_scale = 0.5f;
  OwnedProblem owned = Materialise(c);
  for (int head = 0; head < 2; ++head) {
    const auto at = [&](const void* data, int d) {
      return static_cast<double>(LoadElement(DType::kFloat32, data, 2 * head + d));
    };
    const ReferenceRow row = ReferenceAttentionRow(owned.problem(), 0, 0, head);
    EXPECT_DOUBLE_EQ(row.o[0], at(owned.v(), 0));
    EXPECT_DOUBLE_EQ(row.o[1], at(owned.v(), 1));
    const double dot = at(owned.q(), 0) * at(owned.k(), 0) + at(owned.q(), 1) * at(owned.k(), 1);
    EXPECT_NEAR(row.lse, 0.5 * dot - static_cast<double>(owned.slopes()[head]) * 4, 1e-12);
  }
}

TEST(ReferenceAttention, EqualKeysAverageTheValues) {
  AttentionCase c;
  c.bias = BiasKind::kNone;
  c.mask.causal = false;
  c.input = support::InputKind::kConstant;
  c.sequences = {{.q_len = 3, .kv_len = 7}};
  OwnedProblem owned = Materialise(c);
  const ReferenceRow row = ReferenceAttentionRow(owned.problem(), 0, 1, 0);
  double mean = 0;
  for (int j = 0; j < 7; ++j) {
    mean += static_cast<double>(LoadElement(DType::kFloat32, owned.v(), j * 2 * 32)) / 7;
  }
  EXPECT_NEAR(row.o[0], mean, 1e-12);
  EXPECT_NEAR(row.lse, 0.25 * 32 / std::sqrt(32.0) + std::log(7.0), 1e-6);
}

TEST(ReferenceAttention, MaskWithoutKeysGivesZeroAndMinusInfinity) {
  AttentionCase c;
  c.sequences = {{.q_len = 2, .kv_len = 0}, {.q_len = 1, .kv_len = 4, .query_start = -1}};
  const OwnedProblem owned = Materialise(c);
  for (int sequence = 0; sequence < 2; ++sequence) {
    const ReferenceRow row = ReferenceAttentionRow(owned.problem(), sequence, 0, 1);
    EXPECT_EQ(row.lse, -kInfinity);
    for (const double value : row.o) EXPECT_EQ(value, 0);
  }
}

}  // namespace
}  // namespace flashbias
