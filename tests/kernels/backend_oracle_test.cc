// The backend under test against the fp64 reference over generated cases: every output element
// written, nothing beside it touched, relative error within 3e-4 (fp16), 3e-3 (bf16), 2e-6 (fp32).
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/run_backend.h"

namespace flashbias {
namespace {

using support::AttentionCase;
using support::Describe;
using support::InputKind;
using support::Materialise;
using support::OwnedProblem;
using support::RandomCase;
using support::SequenceCase;
using support::SlopeKind;

constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
constexpr int64_t kMillion = 1'000'000;
constexpr int64_t kFar = int64_t{1} << 40;
constexpr int64_t kLong = support::kSlowBuild ? 1031 : 8191;

using Cases = std::vector<AttentionCase>;

// Adds `c` under a name made of its parts; names are those of the tests.
template <typename... Parts>
void Add(Cases* cases, AttentionCase c, const Parts&... parts) {
  c.name = absl::StrReplaceAll(absl::StrCat(parts...), {{"-", "minus"}, {".", "p"}});
  c.seed = cases->size() + 1;
  cases->push_back(c);
}

DType Rotate(const Cases& cases) { return kDTypes[cases.size() % 3]; }

Cases Lengths() {
  Cases cases;
  for (const int64_t length : {1, 2, 3, 7, 16, 31, 63, 64, 65, 127, 129, 255, 1000}) {
    for (const DType dtype : kDTypes) {
      AttentionCase c;
      c.dtype = dtype;
      c.num_q_heads = c.num_kv_heads = 3;
      c.sequences = {{.q_len = length, .kv_len = length}};
      Add(&cases, c, "n", length, "_", Name(dtype));
    }
  }
  return cases;
}

// Rows are sampled here: the reference would take minutes over all of them.
Cases LongSequences() {
  Cases cases;
  for (const DType dtype : kDTypes) {
    for (const float eps : {kDefaultEps, 0.0f}) {
      AttentionCase c;
      c.dtype = dtype;
      c.eps = eps;
      c.num_q_heads = c.num_kv_heads = 4;
      c.slopes = SlopeKind::kRange;
      c.sequences = {{.q_len = kLong, .kv_len = kLong}};
      Add(&cases, c, "alibi_", Name(dtype), eps == 0 ? "_dense" : "_skipping");
    }
  }
  AttentionCase c;
  c.num_q_heads = c.num_kv_heads = 2;
  c.sequences = {{.q_len = kLong, .kv_len = kLong}};
  c.dtype = DType::kFloat16;
  c.bias = BiasKind::kNone;
  Add(&cases, c, "no_bias_float16");
  c.bias = BiasKind::kLowRank;
  c.rank = 8;
  Add(&cases, c, "low_rank_float16");
  c.bias = BiasKind::kAlibi;
  c.mask.causal = false;
  Add(&cases, c, "two_sided_float16");
  c.dtype = DType::kFloat32;
  c.head_dim = 64;
  Add(&cases, c, "two_sided_float32");
  c.mask.causal = true;
  c.slopes = SlopeKind::kNegative;
  Add(&cases, c, "negative_float32");
  c.slopes = SlopeKind::kTiny;
  Add(&cases, c, "tiny_float32");
  // One query row against a long cache.
  c.slopes = SlopeKind::kRange;
  c.sequences = {{.q_len = 1, .kv_len = kLong}};
  c.num_q_heads = 8;
  Add(&cases, c, "decode_float32");
  return cases;
}

Cases UnequalLengths() {
  Cases cases;
  constexpr int64_t kPairs[][2] = {{1, 129}, {5, 1000}, {64, 1},   {129, 64},
                                   {63, 65}, {200, 63}, {33, 200}, {1000, 5}};
  for (const auto& pair : kPairs) {
    for (const bool causal : {true, false}) {
      AttentionCase c;
      c.dtype = Rotate(cases);
      c.mask.causal = causal;
      c.sequences = {{.q_len = pair[0], .kv_len = pair[1]}};
      Add(&cases, c, "q", pair[0], "_kv", pair[1], causal ? "_causal" : "_full");
    }
  }
  return cases;
}

// Positions far from zero must cost no accuracy: only differences may enter the arithmetic.
Cases Offsets() {
  Cases cases;
  struct Starts {
    const char* name;
    int64_t query_start;
    int64_t key_start;
  };
  constexpr Starts kStarts[] = {
      {"small", 100, 96},
      {"negative", -50, -70},
      {"queries_first", -200, 5},
      {"million", kMillion, kMillion - 20},
      {"far", kFar, kFar - 33},
      {"minus_far", -kFar, -kFar - 33},
      {"million_apart", kMillion, 0},
      {"far_apart", kFar, 0},
      {"far_ahead", -kMillion, kMillion},
  };
  for (const Starts& starts : kStarts) {
    for (const bool causal : {true, false}) {
      for (const SlopeKind slopes : {SlopeKind::kSeed, SlopeKind::kNegative, SlopeKind::kTiny}) {
        AttentionCase c;
        c.dtype = Rotate(cases);
        c.mask.causal = causal;
        c.slopes = slopes;
        c.num_q_heads = c.num_kv_heads = 3;
        c.sequences = {{.q_len = 70,
                        .kv_len = 90,
                        .query_start = starts.query_start,
                        .key_start = starts.key_start}};
        // Every kind of offset in fp32, whose limit is the sharpest.
        if (slopes != SlopeKind::kSeed) c.dtype = DType::kFloat32;
        Add(&cases, c, starts.name, causal ? "_causal" : "_full",
            slopes == SlopeKind::kSeed       ? "_seed"
            : slopes == SlopeKind::kNegative ? "_negative"
                                             : "_tiny");
      }
    }
  }
  return cases;
}

Cases Windows() {
  Cases cases;
  for (const int64_t window : {int64_t{1}, int64_t{2}, int64_t{63}, int64_t{64}, int64_t{65},
                               int64_t{100}, int64_t{5000}, kMaxPosition}) {
    for (const bool causal : {true, false}) {
      AttentionCase c;
      c.dtype = Rotate(cases);
      c.mask = {.causal = causal, .left_window = window};
      c.sequences = {{.q_len = 190, .kv_len = 200}};
      c.bias = static_cast<BiasKind>(cases.size() / 2 % 3);
      Add(&cases, c, "w", window, causal ? "_causal" : "_full");
      // A window that ends before the first key of most rows.
      c.sequences = {{.q_len = 150, .kv_len = 100, .query_start = 20}};
      Add(&cases, c, "w", window, causal ? "_causal" : "_full", "_past_the_keys");
    }
  }
  return cases;
}

Cases HeadGroups() {
  Cases cases;
  constexpr int kHeads[][2] = {{1, 1}, {4, 4}, {4, 1}, {8, 2}, {8, 1}, {16, 2}, {12, 3}, {50, 50}};
  for (const auto& heads : kHeads) {
    for (const BiasKind bias : {BiasKind::kAlibi, BiasKind::kLowRank}) {
      AttentionCase c;
      c.dtype = Rotate(cases);
      c.num_q_heads = heads[0];
      c.num_kv_heads = heads[1];
      c.bias = bias;
      c.sequences = {{.q_len = 67, .kv_len = 90}};
      Add(&cases, c, "h", heads[0], "_kv", heads[1],
          bias == BiasKind::kAlibi ? "_alibi" : "_low_rank");
    }
  }
  return cases;
}

Cases HeadDims() {
  Cases cases;
  for (const int head_dim : {1, 2, 7, 8, 15, 16, 31, 32, 33, 40, 63, 64, 80, 96, 127, 128}) {
    for (const DType dtype : kDTypes) {
      AttentionCase c;
      c.dtype = dtype;
      c.head_dim = head_dim;
      c.sequences = {{.q_len = 100, .kv_len = 130}};
      c.mask.causal = dtype != DType::kBFloat16;
      c.byte_offset = head_dim % 3;
      Add(&cases, c, "d", head_dim, "_", Name(dtype));
    }
  }
  return cases;
}

Cases LowRank() {
  Cases cases;
  for (const int rank : {1, 2, 3, 8, 17, 64}) {
    for (const DType factor_dtype : kDTypes) {
      for (int shared = 0; shared < 4; ++shared) {
        AttentionCase c;
        c.dtype = Rotate(cases);
        c.bias = BiasKind::kLowRank;
        c.num_q_heads = 4;
        c.num_kv_heads = 2;
        c.head_dim = 40;
        c.rank = rank;
        c.factor_dtype = factor_dtype;
        c.phi_q_per_head = (shared & 1) != 0;
        c.phi_k_per_head = (shared & 2) != 0;
        c.mask.causal = shared != 3;
        c.byte_offset = rank % 2;
        c.sequences = {{.q_len = 66, .kv_len = 100}};
        Add(&cases, c, "r", rank, "_", Name(factor_dtype), c.phi_q_per_head ? "_qh" : "_q1",
            c.phi_k_per_head ? "_kh" : "_k1");
      }
    }
  }
  return cases;
}

Cases Slopes() {
  Cases cases;
  constexpr SlopeKind kKinds[] = {SlopeKind::kStandard, SlopeKind::kSeed,     SlopeKind::kRange,
                                  SlopeKind::kZero,     SlopeKind::kNegative, SlopeKind::kTiny,
                                  SlopeKind::kMixed};
  for (const SlopeKind slopes : kKinds) {
    for (const bool causal : {true, false}) {
      for (const float eps : {0.0f, kDefaultEps, kMaxEps}) {
        AttentionCase c;
        c.dtype = Rotate(cases);
        c.num_q_heads = c.num_kv_heads = 8;
        c.slopes = slopes;
        c.mask.causal = causal;
        c.eps = eps;
        c.sequences = {{.q_len = 300, .kv_len = 300}};
        Add(&cases, c, "kind", static_cast<int>(slopes), causal ? "_causal" : "_full",
            eps == 0 ? "_eps0" : (eps == kMaxEps ? "_epsmax" : ""));
      }
    }
  }
  return cases;
}

Cases Packed() {
  Cases cases;
  for (const DType dtype : kDTypes) {
    for (const bool per_sequence : {false, true}) {
      AttentionCase c;
      c.dtype = dtype;
      c.num_q_heads = 4;
      c.num_kv_heads = 2;
      c.slopes_per_sequence = per_sequence;
      c.byte_offset = per_sequence ? 1 : 0;
      c.sequences = {{.q_len = 65, .kv_len = 65},
                     {.q_len = 0, .kv_len = 0},
                     {.q_len = 1, .kv_len = 200},
                     {.q_len = 3, .kv_len = 0},
                     {.q_len = 0, .kv_len = 9},
                     {.q_len = 130, .kv_len = 70},
                     {.q_len = 10, .kv_len = 10, .query_start = 1000, .key_start = 980},
                     {.q_len = 1, .kv_len = 1}};
      Add(&cases, c, "mixed_", Name(dtype), per_sequence ? "_slopes_each" : "_slopes_shared");
      c.bias = BiasKind::kLowRank;
      c.rank = 5;
      Add(&cases, c, "low_rank_", Name(dtype), per_sequence ? "_unaligned" : "");
    }
  }
  AttentionCase nothing;
  nothing.sequences = {{.q_len = 0, .kv_len = 0}};
  Add(&cases, nothing, "one_empty_sequence");
  nothing.sequences.clear();
  Add(&cases, nothing, "no_sequences");
  return cases;
}

Cases RowsWithoutKeys() {
  Cases cases;
  for (const DType dtype : kDTypes) {
    AttentionCase c;
    c.dtype = dtype;
    c.sequences = {{.q_len = 100, .kv_len = 30}};  // the first 70 rows see nothing
    Add(&cases, c, "front_", Name(dtype));
    c.sequences = {{.q_len = 70, .kv_len = 30, .query_start = -1000}};
    Add(&cases, c, "all_", Name(dtype));
    c.sequences = {{.q_len = 70, .kv_len = 0}};
    Add(&cases, c, "no_keys_", Name(dtype));
    c.sequences = {{.q_len = 100, .kv_len = 30, .query_start = 0}};
    c.mask.left_window = 5;
    Add(&cases, c, "back_", Name(dtype));
  }
  return cases;
}

Cases ScalesAndInputs() {
  Cases cases;
  for (const DType dtype : kDTypes) {
    AttentionCase c;
    c.dtype = dtype;
    c.sequences = {{.q_len = 90, .kv_len = 140}};
    c.softmax_scale = -0.3f;
    Add(&cases, c, "negative_scale_", Name(dtype));
    c.softmax_scale = 1e-30f;
    Add(&cases, c, "vanishing_scale_", Name(dtype));
    c.softmax_scale = 0;
    c.want_lse = false;
    Add(&cases, c, "no_lse_", Name(dtype));
    c.want_lse = true;
    c.input = InputKind::kConstant;
    Add(&cases, c, "constant_", Name(dtype));
    c.bias = BiasKind::kNone;
    Add(&cases, c, "constant_no_bias_", Name(dtype));
    for (const int byte_offset : {1, 2, 3, 4, 63}) {
      AttentionCase shifted;
      shifted.dtype = dtype;
      shifted.head_dim = 33;
      shifted.byte_offset = byte_offset;
      shifted.sequences = {{.q_len = 77, .kv_len = 77}};
      Add(&cases, shifted, "byte_offset_", byte_offset, "_", Name(dtype));
    }
  }
  return cases;
}

class BackendOracleTest : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(BackendOracleTest, MatchesTheReference) {
  const AttentionCase c = Served(GetParam());
  SCOPED_TRACE(c.dtype == GetParam().dtype ? "" : "in float16");
  OwnedProblem owned = Materialise(c);
  const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_TRUE(MatchesOracle(owned));
}

#define INSTANTIATE(group)                                                         \
  INSTANTIATE_TEST_SUITE_P(group, BackendOracleTest, ::testing::ValuesIn(group()), \
                           [](const auto& param) { return param.param.name; })
INSTANTIATE(Lengths);
INSTANTIATE(LongSequences);
INSTANTIATE(UnequalLengths);
INSTANTIATE(Offsets);
INSTANTIATE(Windows);
INSTANTIATE(HeadGroups);
INSTANTIATE(HeadDims);
INSTANTIATE(LowRank);
INSTANTIATE(Slopes);
INSTANTIATE(Packed);
INSTANTIATE(RowsWithoutKeys);
INSTANTIATE(ScalesAndInputs);

// Sharp softmax: logits of tens, whose fp32 rounding shows in the weights. N(0, 1) limits do not
// apply; the slack is a few units in the last place of the largest logit.
TEST(BackendOracle, LargeLogits) {
  for (const DType dtype : kDTypes) {
    AttentionCase c;
    c.name = "large_logits";
    c.dtype = dtype;
    c.input = InputKind::kLargeLogits;
    c.sequences = {{.q_len = 130, .kv_len = 300}};
    for (const float scale : {0.0f, 1.0f, 10.0f}) {
      c.softmax_scale = scale;
      OwnedProblem owned = Materialise(Served(c));
      ASSERT_TRUE(support::RunAndWait(BackendUnderTest(), owned).ok());
      const double largest_logit = (scale == 0 ? 0.18 : static_cast<double>(scale)) * 100;
      EXPECT_TRUE(MatchesOracle(owned, 0x1p-21 * largest_logit)) << Describe(c);
    }
  }
}

// Many shapes at once that nobody chose; a failure prints the seed and the whole case.
TEST(BackendOracle, RandomSweep) {
  const uint64_t count = support::kSlowBuild ? 60 : 400;
  for (uint64_t seed = 0; seed < count; ++seed) {
    const AttentionCase c = Served(RandomCase(seed));
    OwnedProblem owned = Materialise(c);
    const absl::StatusOr<ProblemStats> stats = support::RunAndWait(BackendUnderTest(), owned);
    ASSERT_TRUE(stats.ok()) << stats.status() << " " << Describe(c);
    EXPECT_TRUE(MatchesOracle(owned, 0, support::kDefaultBudget / 10)) << Describe(c);
  }
}

}  // namespace
}  // namespace flashbias
