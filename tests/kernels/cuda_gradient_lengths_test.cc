// Gradients of the CUDA kernels around the edges of their tiles, and at the lengths that users
// train with.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare_gradients.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using support::Describe;
using support::MatchesReferenceGradients;
using support::Materialise;
using support::OwnedProblem;
using support::SlopeKind;

struct Shape {
  DType dtype;
  int head_dim;
};

constexpr Shape kShapes[] = {{DType::kFloat16, 32},  {DType::kFloat16, 64},
                             {DType::kFloat16, 128}, {DType::kBFloat16, 32},
                             {DType::kBFloat16, 64}, {DType::kBFloat16, 128}};

class CudaGradientLengthsTest : public ::testing::TestWithParam<Shape> {
 protected:
  AttentionCase OfLength(int64_t length) const {
    AttentionCase c;
    c.name = absl::StrCat("n", length);
    c.direction = Direction::kBackward;
    c.dtype = GetParam().dtype;
    c.head_dim = GetParam().head_dim;
    c.sequences = {{.q_len = length, .kv_len = length}};
    c.seed = static_cast<uint64_t>(length) + 1;
    return c;
  }

  // All cases as one batch, with skipping and without.
  static void ExpectRightAsABatch(const std::vector<AttentionCase>& cases) {
    std::vector<OwnedProblem> owned;
    for (const AttentionCase& c : cases) owned.push_back(Materialise(c));
    for (const float eps : {kDefaultEps, 0.0f}) {
      std::vector<AttentionProblem> batch;
      for (OwnedProblem& problem : owned) {
        problem.mutable_problem().eps = eps;
        problem.PoisonOutputs();
        batch.push_back(problem.problem());
      }
      ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), batch).ok());
      for (size_t n = 0; n < cases.size(); ++n) {
        EXPECT_TRUE(MatchesReferenceGradients(owned[n]))
            << Describe(cases[n]) << " run with " << eps;
      }
    }
  }

  // One head of each kind that the case has: the reference takes seconds.
  static void ExpectRight(const AttentionCase& c) {
    OwnedProblem owned = Materialise(c);
    ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), owned).ok());
    EXPECT_TRUE(MatchesReferenceGradients(owned, 0, /*budget=*/1)) << Describe(c);
  }
};

// What takes long on the processor, with fewer shapes.
class CudaLongGradientsTest : public CudaGradientLengthsTest {};

TEST_P(CudaGradientLengthsTest, EveryLengthUpTo200) {
  std::vector<AttentionCase> cases;
  for (int64_t length = 1; length <= 200; ++length) cases.push_back(OfLength(length));
  ExpectRightAsABatch(cases);
}

TEST_P(CudaGradientLengthsTest, AroundTheEdgesOfTiles) {
  std::vector<AttentionCase> cases;
  for (int64_t edge = 256; edge <= 1280; edge += 64) {
    for (const int64_t length : {edge - 1, edge, edge + 1}) {
      cases.push_back(OfLength(length));
      cases.back().num_q_heads = cases.back().num_kv_heads = 1;
      cases.back().mask.causal = edge % 192 != 0;
    }
  }
  ExpectRightAsABatch(cases);
}

TEST_P(CudaLongGradientsTest, CausalAlibi) {
  for (const auto& [length, eps] : {std::pair{8192, 0.0f}, std::pair{16384, kDefaultEps}}) {
    AttentionCase c = OfLength(length);
    c.num_q_heads = c.num_kv_heads = 4;
    c.slopes = length == 8192 ? SlopeKind::kStandard : SlopeKind::kRange;
    c.eps = eps;
    ExpectRight(c);
  }
}

TEST_P(CudaLongGradientsTest, OtherKinds) {
  AttentionCase c = OfLength(GetParam().head_dim == 32 ? 8192 : 4096);
  c.num_q_heads = 2;
  c.num_kv_heads = 1;
  c.mask.causal = false;
  ExpectRight(c);
  c.mask = {.causal = true, .left_window = 1000};
  c.bias = BiasKind::kLowRank;
  c.rank = 8;
  ExpectRight(c);
  c.mask = {};
  c.bias = BiasKind::kNone;
  ExpectRight(c);
  c.bias = BiasKind::kAlibi;
  c.slopes = SlopeKind::kTiny;
  ExpectRight(c);
}

std::string NameOf(const ::testing::TestParamInfo<Shape>& shape) {
  return absl::StrCat(Name(shape.param.dtype), "_", shape.param.head_dim);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaGradientLengthsTest, ::testing::ValuesIn(kShapes), NameOf);
INSTANTIATE_TEST_SUITE_P(Shapes, CudaLongGradientsTest,
                         ::testing::Values(kShapes[0], kShapes[2], kShapes[3]), NameOf);

}  // namespace
}  // namespace flashbias
