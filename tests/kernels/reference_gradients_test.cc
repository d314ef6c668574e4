// The oracle of the gradients: against finite differences of the forward oracle, with which it
// shares no code, and against the golden vectors.
#include "kernels/reference/reference_gradients.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/reference_attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare_gradients.h"
#include "tests/support/golden.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using support::Describe;
using support::Materialise;
using support::OwnedProblem;
using support::SlopeKind;

// <d_o, o>, from the forward oracle.
double Loss(const AttentionProblem& problem) {
  double loss = 0;
  for (int64_t n = 0; n < static_cast<int64_t>(problem.sequences.size()); ++n) {
    for (int64_t row = 0; row < problem.sequences[n].q_len; ++row) {
      for (int head = 0; head < problem.num_q_heads; ++head) {
        const ReferenceRow result = ReferenceAttentionRow(problem, n, row, head);
        const int64_t at = (problem.sequences[n].q_begin + row) * problem.num_q_heads + head;
        for (int d = 0; d < problem.head_dim; ++d) {
          loss +=
              result.o[d] * static_cast<double>(LoadElement(problem.dtype, problem.gradients.d_o,
                                                            at * problem.head_dim + d));
        }
      }
    }
  }
  return loss;
}

// Every element of `values`, moved a little both ways, against `gradient`.
void ExpectGradient(const char* name, const AttentionProblem& problem, void* values,
                    const std::vector<double>& gradient) {
  auto* floats = static_cast<float*>(values);
  for (size_t n = 0; n < gradient.size(); ++n) {
    const float value = floats[n];
    const float above = value + 0x1p-10f;
    const float below = value - 0x1p-10f;
    floats[n] = above;
    const double loss_above = Loss(problem);
    floats[n] = below;
    const double loss_below = Loss(problem);
    floats[n] = value;
    const double slope =
        (loss_above - loss_below) / (static_cast<double>(above) - static_cast<double>(below));
    EXPECT_NEAR(gradient[n], slope, 2e-5 * (1 + std::fabs(slope))) << name << "[" << n << "]";
  }
}

void ExpectFiniteDifferences(AttentionCase c) {
  c.direction = Direction::kBackward;
  SCOPED_TRACE(Describe(c));
  OwnedProblem owned = Materialise(c);
  const AttentionProblem& problem = owned.problem();
  const ReferenceGradients gradients = ComputeReferenceGradients(problem);
  ExpectGradient("dq", problem, owned.q(), gradients.dq);
  ExpectGradient("dk", problem, owned.k(), gradients.dk);
  ExpectGradient("dv", problem, owned.v(), gradients.dv);
  ExpectGradient("dslopes", problem, owned.slopes(), gradients.dslopes);
  ExpectGradient("dphi_q", problem, owned.phi_q(), gradients.dphi_q);
  ExpectGradient("dphi_k", problem, owned.phi_k(), gradients.dphi_k);
}

AttentionCase Small() {
  AttentionCase c;
  c.head_dim = 3;
  c.sequences = {{.q_len = 6, .kv_len = 6}};
  return c;
}

TEST(ReferenceGradients, NoBias) {
  AttentionCase c = Small();
  c.bias = BiasKind::kNone;
  ExpectFiniteDifferences(c);
  c.mask.causal = false;
  c.softmax_scale = -0.7f;
  ExpectFiniteDifferences(c);
}

TEST(ReferenceGradients, AlibiOfEitherSign) {
  for (const SlopeKind slopes : {SlopeKind::kSeed, SlopeKind::kNegative, SlopeKind::kZero}) {
    for (const bool causal : {true, false}) {
      AttentionCase c = Small();
      c.slopes = slopes;
      c.mask.causal = causal;
      c.sequences = {{.q_len = 5, .kv_len = 7}};
      ExpectFiniteDifferences(c);
    }
  }
}

TEST(ReferenceGradients, GroupedHeadsWindowsAndOffsets) {
  AttentionCase c = Small();
  c.num_q_heads = 4;
  c.mask.left_window = 3;
  ExpectFiniteDifferences(c);
  c.mask.left_window = 0;
  c.sequences = {{.q_len = 4, .kv_len = 5, .query_start = 9, .key_start = 6}};
  ExpectFiniteDifferences(c);
  c.mask.causal = false;
  c.mask.left_window = 2;
  ExpectFiniteDifferences(c);
}

TEST(ReferenceGradients, SequencesWithAndWithoutSlopesOfTheirOwn) {
  for (const bool per_sequence : {false, true}) {
    AttentionCase c = Small();
    c.num_q_heads = 4;
    c.slopes_per_sequence = per_sequence;
    c.sequences = {{.q_len = 3, .kv_len = 3},
                   {.q_len = 0, .kv_len = 2},
                   {.q_len = 2, .kv_len = 0},
                   {.q_len = 5, .kv_len = 2},
                   {.q_len = 2, .kv_len = 4}};
    ExpectFiniteDifferences(c);
  }
}

TEST(ReferenceGradients, LowRankFactorsSharedAndNot) {
  for (const bool of_q : {false, true}) {
    for (const bool of_k : {false, true}) {
      AttentionCase c = Small();
      c.num_q_heads = 4;
      c.bias = BiasKind::kLowRank;
      c.phi_q_per_head = of_q;
      c.phi_k_per_head = of_k;
      c.mask.causal = of_k;
      c.sequences = {{.q_len = 4, .kv_len = 4}, {.q_len = 2, .kv_len = 3}};
      ExpectFiniteDifferences(c);
    }
  }
}

TEST(ReferenceGradients, PositionsFarAwayChangeNothing) {
  AttentionCase c = Small();
  c.direction = Direction::kBackward;
  c.sequences = {{.q_len = 6, .kv_len = 6, .query_start = 0}};
  const ReferenceGradients near = ComputeReferenceGradients(Materialise(c).problem());
  constexpr int64_t kFar = int64_t{1} << 46;
  c.sequences = {{.q_len = 6, .kv_len = 6, .query_start = kFar, .key_start = kFar}};
  const ReferenceGradients far = ComputeReferenceGradients(Materialise(c).problem());
  EXPECT_EQ(near.dq, far.dq);
  EXPECT_EQ(near.dslopes, far.dslopes);
}

TEST(ReferenceGradients, ForwardResultsAreTheForwardOracles) {
  AttentionCase c = Small();
  c.direction = Direction::kBackward;
  c.sequences = {{.q_len = 9, .kv_len = 5}, {.q_len = 3, .kv_len = 70}};
  const OwnedProblem owned = Materialise(c);
  const AttentionProblem& problem = owned.problem();
  for (int64_t n = 0; n < 2; ++n) {
    const Sequence& s = problem.sequences[n];
    for (int64_t row = 0; row < s.q_len; ++row) {
      const ReferenceRow expected = ReferenceAttentionRow(problem, n, row, 1);
      const int64_t at = (s.q_begin + row) * 2 + 1;
      EXPECT_FLOAT_EQ(problem.lse[at], static_cast<float>(expected.lse));
      for (int d = 0; d < 3; ++d) {
        EXPECT_FLOAT_EQ(LoadElement(DType::kFloat32, problem.o, at * 3 + d),
                        static_cast<float>(expected.o[d]));
      }
    }
  }
}

void ExpectNear(const char* name, const std::vector<double>& actual,
                const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  for (size_t n = 0; n < actual.size(); ++n) {
    // The vectors' slopes and scale are those of fp32 or of double.
    EXPECT_NEAR(actual[n], expected[n], 1e-6 * (1 + std::fabs(expected[n])))
        << name << "[" << n << "]";
  }
}

TEST(ReferenceGradients, GoldenVectors) {
  const auto cases = support::LoadGoldenGradients();
  ASSERT_TRUE(cases.ok()) << cases.status();
  EXPECT_EQ(cases->size(), 11u);
  for (const support::GoldenGradients& golden : *cases) {
    SCOPED_TRACE(golden.name);
    const ReferenceGradients actual = ComputeReferenceGradients(golden.owned.problem());
    ExpectNear("dq", actual.dq, golden.expected.dq);
    ExpectNear("dk", actual.dk, golden.expected.dk);
    ExpectNear("dv", actual.dv, golden.expected.dv);
    ExpectNear("dslopes", actual.dslopes, golden.expected.dslopes);
    ExpectNear("dphi_q", actual.dphi_q, golden.expected.dphi_q);
    ExpectNear("dphi_k", actual.dphi_k, golden.expected.dphi_k);
  }
}

}  // namespace
}  // namespace flashbias
