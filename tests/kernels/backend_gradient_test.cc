// The backend under test against the fp64 gradients over the golden vectors and generated cases:
// every element of every gradient written, nothing beside them touched, relative errors within the
// limits of support/compare_gradients.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare_gradients.h"
#include "tests/support/golden.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using support::Describe;
using support::GoldenGradients;
using support::GradientError;
using support::InputKind;
using support::kGradientBudget;
using support::MatchesReferenceGradients;
using support::Materialise;
using support::OwnedProblem;
using support::SlopeKind;

constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
constexpr int64_t kMillion = 1'000'000;
constexpr int64_t kFar = int64_t{1} << 40;

AttentionCase Backward(AttentionCase c) {
  c.direction = Direction::kBackward;
  return Served(c);
}

// The case as a backward problem against the reference. Says which case failed.
void ExpectGradients(const AttentionCase& forward, double slack = 0,
                     int64_t budget = kGradientBudget) {
  const AttentionCase c = Backward(forward);
  OwnedProblem owned = Materialise(c);
  const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
  ASSERT_TRUE(stats.ok()) << stats.status() << " " << Describe(c);
  EXPECT_TRUE(MatchesReferenceGradients(owned, slack, budget)) << Describe(c);
}

// ALiBi as <(-slope i, slope), (1, j)> in fp32, positions counted from `start` on.
OwnedProblem MaterialiseAlibiAsFactors(AttentionCase c, int64_t start, float slope) {
  c.bias = BiasKind::kLowRank;
  c.rank = 2;
  c.phi_q_per_head = c.phi_k_per_head = false;
  OwnedProblem owned = Materialise(Backward(c));
  const auto fill = [&](void* factors, int64_t rows, float constant, float per_position,
                        bool of_q) {
    for (int64_t row = 0; row < rows; ++row) {
      const float position = per_position * static_cast<float>(start + row);
      StoreElement(DType::kFloat32, factors, 2 * row, of_q ? position : constant);
      StoreElement(DType::kFloat32, factors, 2 * row + 1, of_q ? constant : position);
    }
  };
  fill(owned.phi_q(), owned.problem().total_q, slope, -slope, true);
  fill(owned.phi_k(), owned.problem().total_kv, 1, 1, false);
  owned.SetForwardResults();
  return owned;
}

TEST(BackendGradient, GoldenVectors) {
  for (const DType dtype : SharpestDTypes()) {
    absl::StatusOr<std::vector<GoldenGradients>> cases = support::LoadGoldenGradients();
    ASSERT_TRUE(cases.ok()) << cases.status();
    std::vector<AttentionProblem> batch;
    for (GoldenGradients& golden : *cases) {
      if (dtype != DType::kFloat32) golden.owned = golden.owned.RoundedTo(dtype);
      for (const float eps : {0.0f, kDefaultEps}) {
        golden.owned.mutable_problem().eps = eps;
        ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), golden.owned).ok());
        EXPECT_TRUE(support::MatchesGolden(golden)) << Name(dtype) << " eps " << eps;
        EXPECT_TRUE(MatchesReferenceGradients(golden.owned)) << golden.name << " eps " << eps;
      }
      golden.owned.PoisonOutputs();
      batch.push_back(golden.owned.problem());
    }
    ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), batch).ok());
    for (const GoldenGradients& golden : *cases) EXPECT_TRUE(support::MatchesGolden(golden));
  }
}

TEST(BackendGradient, Lengths) {
  std::vector<int64_t> lengths = {127, 128, 129, 130, 191, 192, 193, 255, 256, 257, 384, 385, 1000};
  for (int64_t n = 1; n <= 70; ++n) lengths.push_back(n);
  for (const int64_t length : lengths) {
    AttentionCase c;
    c.dtype = kDTypes[length % 3];
    c.seed = static_cast<uint64_t>(length);
    c.num_kv_heads = 1;
    c.sequences = {{.q_len = length, .kv_len = length}};
    c.mask.causal = length % 4 != 0;
    c.bias = static_cast<BiasKind>(length % 5 == 0 ? 2 : length % 5 == 1 ? 0 : 1);
    ExpectGradients(c);
  }
}

TEST(BackendGradient, UnequalLengths) {
  constexpr int64_t kPairs[][2] = {{1, 129},  {5, 1000}, {64, 1},   {129, 64}, {63, 65},
                                   {200, 63}, {33, 200}, {1000, 5}, {300, 700}};
  for (const auto& pair : kPairs) {
    for (const bool causal : {true, false}) {
      for (const DType dtype : kDTypes) {
        AttentionCase c;
        c.dtype = dtype;
        c.mask.causal = causal;
        c.sequences = {{.q_len = pair[0], .kv_len = pair[1]}};
        ExpectGradients(c);
      }
    }
  }
}

// Positions far from zero must cost no accuracy, where the keys are not far from the queries.
TEST(BackendGradient, Offsets) {
  constexpr int64_t kStarts[][2] = {{100, 96},
                                    {-50, -70},
                                    {-200, 5},
                                    {kFar, kFar - 33},
                                    {-kFar, -kFar - 33},
                                    {300, 0},
                                    {kMillion, kMillion - 20}};
  for (const auto& start : kStarts) {
    for (const bool causal : {true, false}) {
      for (const SlopeKind slopes : {SlopeKind::kSeed, SlopeKind::kNegative, SlopeKind::kTiny}) {
        AttentionCase c;
        c.dtype = kDTypes[(start[0] & 1) + (causal ? 1 : 0)];
        c.mask.causal = causal;
        c.slopes = slopes;
        c.sequences = {
            {.q_len = 70, .kv_len = 100, .query_start = start[0], .key_start = start[1]}};
        ExpectGradients(c);
      }
    }
  }
}

TEST(BackendGradient, Windows) {
  for (const int64_t window : {int64_t{1}, int64_t{2}, int64_t{63}, int64_t{64}, int64_t{100},
                               int64_t{300}, int64_t{1} << 60}) {
    for (const BiasKind bias : {BiasKind::kNone, BiasKind::kAlibi, BiasKind::kLowRank}) {
      for (const bool causal : {true, false}) {
        AttentionCase c;
        c.dtype = kDTypes[window % 3];
        c.num_kv_heads = 1;
        c.bias = bias;
        c.mask = {.causal = causal, .left_window = window};
        c.sequences = {{.q_len = 200, .kv_len = 260}};
        ExpectGradients(c);
      }
    }
  }
}

TEST(BackendGradient, HeadDimsAndGroups) {
  for (const int head_dim : {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 40, 63, 64, 65, 96, 127, 128}) {
    for (const DType dtype : kDTypes) {
      AttentionCase c;
      c.dtype = dtype;
      c.head_dim = head_dim;
      c.num_q_heads = 6;
      c.num_kv_heads = head_dim % 2 == 0 ? 2 : 3;
      c.byte_offset = head_dim % 5;
      c.sequences = {{.q_len = 75, .kv_len = 75}};
      ExpectGradients(c);
    }
  }
}

TEST(BackendGradient, SlopesOfEveryKindWithAndWithoutSkipping) {
  for (const SlopeKind slopes :
       {SlopeKind::kStandard, SlopeKind::kSeed, SlopeKind::kRange, SlopeKind::kZero,
        SlopeKind::kNegative, SlopeKind::kTiny, SlopeKind::kMixed}) {
    for (const bool causal : {true, false}) {
      for (const float eps : {0.0f, kDefaultEps, kMaxEps}) {
        AttentionCase c;
        c.dtype = kDTypes[static_cast<int>(slopes) % 3];
        c.num_q_heads = 8;
        c.num_kv_heads = 4;
        c.slopes = slopes;
        c.mask.causal = causal;
        c.eps = eps;
        c.sequences = {{.q_len = 300, .kv_len = 300}};
        ExpectGradients(c);
      }
    }
  }
}

TEST(BackendGradient, LowRank) {
  for (const int rank : {1, 2, 5, 8, 16, 33, 64}) {
    for (const bool of_q : {true, false}) {
      for (const bool of_k : {true, false}) {
        AttentionCase c;
        c.dtype = kDTypes[rank % 3];
        c.factor_dtype = kDTypes[(rank + (of_q ? 1 : 0)) % 3];
        c.num_q_heads = 4;
        c.bias = BiasKind::kLowRank;
        c.rank = rank;
        c.phi_q_per_head = of_q;
        c.phi_k_per_head = of_k;
        c.mask.causal = of_q;
        c.byte_offset = rank;
        c.sequences = {{.q_len = 100, .kv_len = 130}, {.q_len = 20, .kv_len = 7}};
        ExpectGradients(c);
      }
    }
  }
}

// A row's dS sum to 0 but for the rounding of o, from which <d_o, o> comes. Factors that are
// positions must not carry that into the result.
TEST(BackendGradient, AlibiAsFactorsOfFarPositions) {
  const int64_t length = support::kSlowBuild ? 200 : 512;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const int64_t start : {0, 4000, -4000}) {
      for (const float slope : {0.004f, 0.03f, 0.25f}) {
        AttentionCase c;
        c.dtype = dtype;
        c.num_kv_heads = 1;
        c.sequences = {{.q_len = length, .kv_len = length}};
        OwnedProblem owned = MaterialiseAlibiAsFactors(c, start, slope);
        ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), owned).ok());
        ASSERT_EQ(owned.CheckOutputs(), "");
        for (const GradientError& error : support::CompareGradients(owned.problem())) {
          const bool of_bias = error.name == "dphi_q" || error.name == "dphi_k";
          const double limit =
              of_bias ? support::BiasGradientLimit(dtype) : support::GradientLimit(dtype);
          EXPECT_LE(error.error, limit * error.norm)
              << Name(dtype) << " " << error.name << " from " << start << ", slope " << slope
              << ": relative error " << error.error / error.norm;
        }
      }
    }
  }
}

TEST(BackendGradient, PackedSequences) {
  for (const DType dtype : kDTypes) {
    for (const bool per_sequence : {false, true}) {
      for (const BiasKind bias : {BiasKind::kNone, BiasKind::kAlibi, BiasKind::kLowRank}) {
        AttentionCase c;
        c.dtype = dtype;
        c.num_q_heads = 4;
        c.num_kv_heads = 2;
        c.bias = bias;
        c.slopes_per_sequence = per_sequence;
        c.phi_k_per_head = per_sequence;
        c.sequences = {{.q_len = 65, .kv_len = 65},
                       {.q_len = 0, .kv_len = 0},
                       {.q_len = 1, .kv_len = 200},
                       {.q_len = 3, .kv_len = 0},
                       {.q_len = 0, .kv_len = 9},
                       {.q_len = 130, .kv_len = 70},
                       {.q_len = 10, .kv_len = 10, .query_start = 1000, .key_start = 980},
                       {.q_len = 1, .kv_len = 1}};
        ExpectGradients(c);
        c.want_bias_gradient = false;
        ExpectGradients(c);
      }
    }
  }
}

TEST(BackendGradient, NothingAtAll) {
  for (const BiasKind bias : {BiasKind::kNone, BiasKind::kAlibi, BiasKind::kLowRank}) {
    AttentionCase c;
    c.bias = bias;
    c.sequences = {{.q_len = 0, .kv_len = 0}};
    ExpectGradients(c);
    c.sequences.clear();
    ExpectGradients(c);
  }
}

TEST(BackendGradient, RowsWithoutKeys) {
  for (const DType dtype : kDTypes) {
    AttentionCase c;
    c.dtype = dtype;
    c.sequences = {{.q_len = 100, .kv_len = 30}};  // the first 70 rows see nothing
    ExpectGradients(c);
    c.sequences = {{.q_len = 70, .kv_len = 30, .query_start = -1000}};
    ExpectGradients(c);
    c.sequences = {{.q_len = 100, .kv_len = 30, .query_start = 0}};
    c.mask.left_window = 5;
    ExpectGradients(c);
  }
}

TEST(BackendGradient, RowsWithoutKeysHaveNoGradientWhateverTheyHold) {
  AttentionCase c;
  c.sequences = {{.q_len = 100, .kv_len = 30}};
  OwnedProblem owned = Materialise(Backward(c));
  const AttentionProblem& problem = owned.problem();
  const int64_t row_size = int64_t{problem.num_q_heads} * problem.head_dim;
  for (int64_t n = 0; n < 70 * row_size; ++n) {
    StoreElement(problem.dtype, owned.d_o(), n, n % 2 == 0 ? 1e4f : -1e4f);
  }
  ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), owned).ok());
  EXPECT_TRUE(MatchesReferenceGradients(owned));
  for (int64_t n = 0; n < 70 * row_size; ++n) {
    ASSERT_EQ(LoadElement(problem.dtype, problem.gradients.dq, n), 0) << n;
  }
}

TEST(BackendGradient, ScalesAndInputs) {
  for (const DType dtype : kDTypes) {
    AttentionCase c;
    c.dtype = dtype;
    c.sequences = {{.q_len = 90, .kv_len = 140}};
    c.softmax_scale = -0.3f;
    ExpectGradients(c);
    c.softmax_scale = 1e-30f;
    ExpectGradients(c);
    c.softmax_scale = 0;
    c.input = InputKind::kConstant;
    ExpectGradients(c);
    c.bias = BiasKind::kNone;
    ExpectGradients(c);
    for (const int byte_offset : {1, 2, 3, 4, 63}) {
      AttentionCase shifted;
      shifted.dtype = dtype;
      shifted.head_dim = 33;
      shifted.byte_offset = byte_offset;
      shifted.sequences = {{.q_len = 77, .kv_len = 77}};
      ExpectGradients(shifted);
    }
  }
}

// Loss scales: gradients are linear in d_o and must not lose digits on the way.
TEST(BackendGradient, TinyAndLargeOutputGradients) {
  for (const DType dtype : kDTypes) {
    for (const float scale : {0x1p-20f, 1e-4f, 1e-2f, 100.0f, 4000.0f}) {
      for (const BiasKind bias : {BiasKind::kAlibi, BiasKind::kLowRank}) {
        AttentionCase c;
        c.dtype = dtype;
        c.bias = bias;
        c.d_o_scale = scale;
        c.sequences = {{.q_len = 200, .kv_len = 200}};
        ExpectGradients(c);
      }
    }
  }
}

// Logits of tens: their fp32 rounding shows in the weights.
TEST(BackendGradient, LargeLogits) {
  for (const DType dtype : kDTypes) {
    for (const float scale : {0.0f, 1.0f}) {
      AttentionCase c;
      c.dtype = dtype;
      c.input = InputKind::kLargeLogits;
      c.softmax_scale = scale;
      c.sequences = {{.q_len = 130, .kv_len = 300}};
      ExpectGradients(c, 0x1p-21 * (scale == 0 ? 18 : 100));
    }
  }
}

TEST(BackendGradient, LongerSequences) {
  const int64_t length = support::kSlowBuild ? 500 : 2100;
  for (const DType dtype : kDTypes) {
    for (const float eps : {0.0f, kDefaultEps}) {
      AttentionCase c;
      c.dtype = dtype;
      c.eps = eps;
      c.num_q_heads = c.num_kv_heads = 4;
      c.slopes = SlopeKind::kRange;
      c.sequences = {{.q_len = length, .kv_len = length}};
      ExpectGradients(c);
    }
  }
}

// Many shapes at once that nobody chose; a failure prints the seed and the whole case.
TEST(BackendGradient, RandomSweep) {
  const uint64_t count = support::kSlowBuild ? 60 : 400;
  for (uint64_t seed = 0; seed < count; ++seed) {
    ExpectGradients(support::RandomCase(seed), 0, kGradientBudget / 4);
  }
}

}  // namespace
}  // namespace flashbias
