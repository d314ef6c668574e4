// The CUDA kernels at every short length, around the edges of their tiles, at long lengths, in
// decode, and a thousand times over.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/kernels/new_cuda_backend.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using support::CudaBackend;
using support::Describe;
using support::Materialise;
using support::OwnedProblem;
using support::SlopeKind;

// One backend for the whole program, so that Plans() counts what its tests did.
CudaBackend& Backend() { return static_cast<CudaBackend&>(BackendUnderTest()); }

int64_t HopperPlans() { return Backend().plans(cuda::KernelFamily::kHopper); }

// That the wish for a family was granted: else a test would pass without having tried it.
void ExpectFamilyRan(int64_t hopper_plans_before) {
  if (support::ChosenFamily() == cuda::PlanOptions::Family::kHopper) {
    EXPECT_GT(HopperPlans(), hopper_plans_before);
  } else if (support::ChosenFamily() == cuda::PlanOptions::Family::kPortable) {
    EXPECT_EQ(HopperPlans(), 0);
  }
}

AttentionCase Case(DType dtype, int head_dim, int64_t q_len, int64_t kv_len) {
  AttentionCase c;
  c.name = absl::StrCat("n", kv_len);
  c.dtype = dtype;
  c.num_q_heads = c.num_kv_heads = 3;
  c.head_dim = head_dim;
  c.sequences = {{.q_len = q_len, .kv_len = kv_len}};
  c.seed = static_cast<uint64_t>(kv_len) + 1;
  return c;
}

// All cases as one batch, with skipping and without.
void ExpectRightAsABatch(const std::vector<AttentionCase>& cases, int64_t budget) {
  std::vector<OwnedProblem> owned;
  for (const AttentionCase& c : cases) owned.push_back(Materialise(c));
  for (const float eps : {kDefaultEps, 0.0f}) {
    std::vector<AttentionProblem> batch;
    for (OwnedProblem& problem : owned) {
      problem.mutable_problem().eps = eps;
      problem.PoisonOutputs();
      batch.push_back(problem.problem());
    }
    const absl::StatusOr<std::vector<ProblemStats>> stats = support::RunAndWait(Backend(), batch);
    ASSERT_TRUE(stats.ok()) << stats.status();
    for (size_t n = 0; n < cases.size(); ++n) {
      EXPECT_TRUE(MatchesOracle(owned[n], 0, budget)) << Describe(cases[n]) << " run with " << eps;
      if (eps == 0) {
        EXPECT_EQ((*stats)[n].tiles_skipped, 0) << Describe(cases[n]);
      }
    }
  }
}

struct Shape {
  DType dtype;
  int head_dim;
};

constexpr Shape kShapes[] = {{DType::kFloat16, 32},  {DType::kFloat16, 64},
                             {DType::kFloat16, 128}, {DType::kBFloat16, 32},
                             {DType::kBFloat16, 64}, {DType::kBFloat16, 128}};

class CudaLengthsTest : public ::testing::TestWithParam<Shape> {
 protected:
  AttentionCase OfShape(int64_t q_len, int64_t kv_len) const {
    return Case(GetParam().dtype, GetParam().head_dim, q_len, kv_len);
  }
};

TEST_P(CudaLengthsTest, EveryLengthUpTo300) {
  const int64_t before = HopperPlans();
  std::vector<AttentionCase> cases;
  for (int64_t length = 1; length <= 300; ++length) cases.push_back(OfShape(length, length));
  ExpectRightAsABatch(cases, support::kDefaultBudget / 10);
  ExpectFamilyRan(before);
}

// Multiples of 64 are those of 128, 192 and 256 too: every tile's edges.
TEST_P(CudaLengthsTest, AroundTheEdgesOfTiles) {
  const int64_t before = HopperPlans();
  std::vector<AttentionCase> cases;
  for (int64_t edge = 320; edge <= 4096; edge += 64) {
    for (const int64_t length : {edge - 1, edge, edge + 1}) {
      cases.push_back(OfShape(length, length));
      cases.back().num_q_heads = cases.back().num_kv_heads = GetParam().head_dim == 32 ? 3 : 1;
    }
  }
  ExpectRightAsABatch(cases, support::kDefaultBudget / 10);
  ExpectFamilyRan(before);
}

// One problem with a long sequence, as its own launch.
class CudaLongTest : public CudaLengthsTest {
 protected:
  void ExpectRight(AttentionCase c) {
    OwnedProblem owned = Materialise(c);
    owned.mutable_problem().eps = 0;
    ASSERT_TRUE(support::RunAndWait(Backend(), owned).ok());
    EXPECT_TRUE(MatchesOracle(owned, 0, 3 * support::kDefaultBudget)) << Describe(c) << " dense";
    std::vector<float> dense(static_cast<size_t>(owned.q_elements()));
    for (size_t n = 0; n < dense.size(); ++n) {
      dense[n] = LoadElement(c.dtype, owned.problem().o, static_cast<int64_t>(n));
    }

    owned.mutable_problem().eps = kDefaultEps;
    const absl::StatusOr<ProblemStats> stats = support::RunAndWait(Backend(), owned);
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_TRUE(MatchesOracle(owned, 0, 3 * support::kDefaultBudget)) << Describe(c);
    // The reference sees a sample of the rows, this sees all of them.
    const double limit =
        (c.dtype == DType::kFloat16 ? 1.5e-3 : 1.2e-2) * support::MaxAbsV(owned.problem());
    double worst = 0;
    for (size_t n = 0; n < dense.size(); ++n) {
      const float value = LoadElement(c.dtype, owned.problem().o, static_cast<int64_t>(n));
      const double error = std::fabs(static_cast<double>(value) - static_cast<double>(dense[n]));
      worst = error <= worst ? worst : error;
    }
    EXPECT_LE(worst, limit) << Describe(c);
    if (c.mask.left_window == 0) {
      EXPECT_GT(stats->tiles_skipped, 0) << Describe(c);
    }
  }
};

TEST_P(CudaLongTest, CausalWithSeedSlopes) {
  const int64_t before = HopperPlans();
  for (const int64_t length : {8192, 16384, 32768, 40001, 65535, 65536}) {
    AttentionCase c = OfShape(length, length);
    // The steepest and the flattest of the slopes at the longest lengths.
    if (length > 32768) c.num_q_heads = c.num_kv_heads = 2;
    ExpectRight(c);
  }
  ExpectFamilyRan(before);
}

TEST_P(CudaLongTest, TwoSidedAndWindows) {
  const int64_t before = HopperPlans();
  for (const Mask& mask : {Mask{.causal = false}, Mask{.causal = true, .left_window = 1000},
                           Mask{.causal = false, .left_window = 700}}) {
    AttentionCase c = OfShape(8191, 8191);
    c.mask = mask;
    ExpectRight(c);
  }
  ExpectFamilyRan(before);
}

TEST_P(CudaLengthsTest, Decode) {
  for (const int64_t kv_len : {1, 63, 4096, 65536}) {
    for (const int64_t q_len : {1, 3}) {
      if (q_len > kv_len) continue;
      AttentionCase c = OfShape(q_len, kv_len);
      c.num_q_heads = 32;
      c.num_kv_heads = 4;
      ExpectRightAsABatch({c}, 2 * support::kDefaultBudget);
      c.bias = BiasKind::kNone;
      ExpectRightAsABatch({c}, 2 * support::kDefaultBudget);
    }
  }
}

// Many callers' single tokens in one launch, as a server batches them.
TEST_P(CudaLengthsTest, DecodeInABatch) {
  std::vector<AttentionCase> cases;
  for (int64_t kv_len = 1; kv_len < 6000; kv_len = kv_len * 3 / 2 + 1) {
    cases.push_back(OfShape(1, kv_len));
    cases.back().num_q_heads = 8;
    cases.back().num_kv_heads = 2;
  }
  ExpectRightAsABatch(cases, support::kDefaultBudget);
}

std::string NameOf(const ::testing::TestParamInfo<Shape>& info) {
  return absl::StrCat(Name(info.param.dtype), "_d", info.param.head_dim);
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaLengthsTest, ::testing::ValuesIn(kShapes), NameOf);
INSTANTIATE_TEST_SUITE_P(Shapes, CudaLongTest, ::testing::ValuesIn(kShapes), NameOf);

// A mixed batch launched a thousand times from one upload.
TEST(CudaRepeats, RepeatsAreBitwiseEqual) {
  const auto backend = NewCudaBackend(/*launches=*/1000);
  std::vector<AttentionCase> cases;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    cases.push_back(Case(dtype, 64, 700, 700));
    cases.push_back(Case(dtype, 64, 1, 3000));
    cases.back().num_q_heads = 6;
    cases.push_back(Case(dtype, 64, 333, 500));
    cases.back().mask.causal = false;
    cases.push_back(Case(dtype, 60, 129, 129));  // goes through packing
    cases.push_back(Case(dtype, 64, 200, 257));
    cases.back().mask.left_window = 90;
    cases.push_back(Case(dtype, 64, 150, 300));
    cases.back().bias = BiasKind::kLowRank;  // a group of its own
    cases.back().rank = 3;
    cases.push_back(Case(dtype, 32, 1000, 1000));
    cases.push_back(Case(dtype, 128, 500, 500));
    // Alone in its group, so that its keys are cut over thread blocks.
    cases.push_back(Case(dtype, 128, 2, 9000));
    cases.back().bias = BiasKind::kLowRank;
  }
  std::vector<OwnedProblem> owned;
  std::vector<AttentionProblem> batch;
  for (const AttentionCase& c : cases) {
    owned.push_back(Materialise(c));
    batch.push_back(owned.back().problem());
  }
  const absl::StatusOr<std::vector<ProblemStats>> stats = support::RunAndWait(*backend, batch);
  ASSERT_TRUE(stats.ok()) << stats.status();
  for (size_t n = 0; n < cases.size(); ++n) {
    EXPECT_TRUE(MatchesOracle(owned[n], 0, support::kDefaultBudget / 10)) << Describe(cases[n]);
  }
}

// Skipping only where it is expected to pay keeps the same promise.
TEST(CudaSkipping, WhenItPays) {
  const auto backend = support::CudaBackend::Create(
      {.family = support::ChosenFamily(), .skipping = cuda::PlanOptions::Skipping::kWhenItPays});
  ASSERT_TRUE(backend.ok()) << backend.status();
  for (const int64_t length : {300, 16384}) {
    OwnedProblem owned = Materialise(Case(DType::kFloat16, 64, length, length));
    ASSERT_TRUE(support::RunAndWait(**backend, owned).ok());
    EXPECT_TRUE(MatchesOracle(owned));
  }
}

}  // namespace
}  // namespace flashbias
