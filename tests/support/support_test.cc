// The test support itself: what reads files must refuse damage, and what judges a backend must see
// every kind of fault.
#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/compare_gradients.h"
#include "tests/support/golden.h"
#include "tests/support/npz.h"
#include "tests/support/reference_backend.h"
#include "tests/support/run_backend.h"

namespace flashbias::support {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string FloatNpy() {
  const float values[] = {1.0f, -2.5f, 3.0f, 4.0f, 5.0f, 6.0f};
  return EncodeNpy("<f4", {2, 3},
                   std::string_view(reinterpret_cast<const char*>(values), sizeof(values)));
}

TEST(Npy, WhatIsEncodedIsReadBack) {
  const absl::StatusOr<NpyArray> array = ParseNpy(FloatNpy(), "x");
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->descr, "<f4");
  EXPECT_THAT(array->shape, ElementsAre(2, 3));
  EXPECT_THAT(array->values, ElementsAre(1, -2.5, 3, 4, 5, 6));
  EXPECT_EQ(FloatNpy().find('\n') % 64, 63u);
}

TEST(Npy, EveryTruncationIsAnError) {
  const std::string whole = FloatNpy();
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(ParseNpy(std::string_view(whole).substr(0, size), "x").ok()) << size;
  }
  EXPECT_FALSE(ParseNpy(whole + "x", "x").ok());
}

TEST(Npy, OtherLayoutsAreErrors) {
  std::string fortran = FloatNpy();
  fortran.replace(fortran.find("False"), 5, "True ");
  EXPECT_THAT(std::string(ParseNpy(fortran, "x").status().message()), HasSubstr("C order"));
  EXPECT_FALSE(ParseNpy(EncodeNpy("<u4", {1}, "abcd"), "x").ok());
  EXPECT_FALSE(ParseNpy(EncodeNpy("<f4", {int64_t{1} << 39, int64_t{1} << 39}, "abcd"), "x").ok());
}

TEST(Npz, EveryTruncationOfAVectorIsAnError) {
  const std::string path = FLASHBIAS_SOURCE_DIR "/tests/vectors/rows_without_keys.npz";
  const absl::StatusOr<std::string> whole = ReadFile(path);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_TRUE(ParseNpz(*whole, path).ok());
  for (size_t size = 0; size < whole->size(); size += 41) {
    EXPECT_FALSE(ParseNpz(std::string_view(*whole).substr(0, size), path).ok()) << size;
  }
  EXPECT_FALSE(ReadNpz("no/such/file.npz").ok());
}

TEST(Golden, AllCasesAreThere) {
  const absl::StatusOr<std::vector<GoldenCase>> cases = LoadGoldenCases();
  ASSERT_TRUE(cases.ok()) << cases.status();
  EXPECT_EQ(cases->size(), 11u);
}

TEST(RandomValues, NormalHasMeanZeroAndVarianceOne) {
  Random random(1);
  double sum = 0;
  double squares = 0;
  constexpr int kCount = 100000;
  for (int n = 0; n < kCount; ++n) {
    const double value = static_cast<double>(random.Normal());
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.02);
  EXPECT_NEAR(squares / kCount, 1, 0.02);
}

class JudgeTest : public ::testing::TestWithParam<DType> {
 protected:
  // A problem with the reference's answer in it.
  OwnedProblem Solved() {
    OwnedProblem owned = Materialise({.name = "solved",
                                      .dtype = GetParam(),
                                      .num_q_heads = 4,
                                      .sequences = {{.q_len = 9, .kv_len = 12}},
                                      .byte_offset = 5});
    EXPECT_TRUE(RunAndWait(backend_, owned).ok());
    return owned;
  }

  ReferenceBackend backend_;
};

TEST_P(JudgeTest, AcceptsTheReference) { EXPECT_TRUE(MatchesReference(Solved())); }

TEST_P(JudgeTest, SeesAnUnwrittenElement) {
  OwnedProblem fresh = Materialise({.name = "fresh", .dtype = GetParam()});
  EXPECT_FALSE(MatchesReference(fresh));
  EXPECT_THAT(fresh.CheckOutputs(), HasSubstr("not written"));

  OwnedProblem owned = Solved();
  const size_t element = SizeOf(GetParam());
  char* last = static_cast<char*>(owned.mutable_problem().o) +
               (static_cast<size_t>(owned.q_elements()) - 1) * element;
  std::memcpy(last, fresh.problem().o, element);
  EXPECT_THAT(owned.CheckOutputs(), HasSubstr("of o was not written"));
}

TEST_P(JudgeTest, SeesWritesBesideTheOutputs) {
  OwnedProblem owned = Solved();
  char* o = static_cast<char*>(owned.mutable_problem().o);
  o[-1] = 0;
  EXPECT_THAT(owned.CheckOutputs(), HasSubstr("beside o"));
  OwnedProblem other = Solved();
  other.mutable_problem().lse[other.lse_elements()] = 0;
  EXPECT_THAT(other.CheckOutputs(), HasSubstr("beside lse"));
}

TEST_P(JudgeTest, SeesOneWrongRow) {
  OwnedProblem owned = Solved();
  for (int d = 0; d < owned.problem().head_dim; ++d) {
    StoreElement(GetParam(), owned.mutable_problem().o, d, 0.5f);
  }
  EXPECT_FALSE(MatchesReference(owned));
}

TEST_P(JudgeTest, SeesNan) {
  OwnedProblem owned = Solved();
  StoreElement(GetParam(), owned.mutable_problem().o, 3, std::nanf(""));
  EXPECT_FALSE(MatchesReference(owned));
  OwnedProblem other = Solved();
  other.mutable_problem().lse[3] = std::nanf("");
  EXPECT_FALSE(MatchesReference(other));
}

TEST_P(JudgeTest, SeesAShiftedLse) {
  OwnedProblem owned = Solved();
  owned.mutable_problem().lse[7] += 1e-4f;
  EXPECT_FALSE(MatchesReference(owned));
}

TEST_P(JudgeTest, AllowsWhatEpsPromisesAndNoMore) {
  OwnedProblem owned = Solved();
  owned.mutable_problem().eps = kMaxEps;
  const auto max_v = static_cast<float>(MaxAbsV(owned.problem()));
  const auto shift = [&](float by) {
    OwnedProblem shifted = Solved();
    shifted.mutable_problem().eps = kMaxEps;
    for (int64_t n = 0; n < shifted.q_elements(); ++n) {
      StoreElement(GetParam(), shifted.mutable_problem().o, n,
                   LoadElement(GetParam(), owned.problem().o, n) + by);
    }
    return MatchesReference(shifted);
  };
  EXPECT_TRUE(shift(1.9f * kMaxEps * max_v));
  EXPECT_FALSE(shift(4.0f * kMaxEps * max_v));
}

TEST_P(JudgeTest, AllowsWhatRoundedWeightsDoToLseAndNoMore) {
  if (GetParam() == DType::kFloat32) return;  // which a GPU does not serve
  const Allowance allowance = AllowanceOf({.name = "cuda"}, GetParam());
  EXPECT_EQ(AllowanceOf({.name = "cpu"}, GetParam()).lse, 0);
  EXPECT_EQ(AllowanceOf({.name = "cpu"}, GetParam()).few_elements, 0);
  OwnedProblem owned = Solved();
  owned.mutable_problem().lse[7] += 0.9f * static_cast<float>(allowance.lse);
  EXPECT_TRUE(MatchesReference(owned, 0, kDefaultBudget, allowance));
  EXPECT_FALSE(MatchesReference(owned));
  owned.mutable_problem().lse[7] += 0.9f * static_cast<float>(allowance.lse);
  EXPECT_FALSE(MatchesReference(owned, 0, kDefaultBudget, allowance));
}

class GradientJudgeTest : public ::testing::TestWithParam<std::tuple<DType, BiasKind>> {
 protected:
  static DType dtype() { return std::get<0>(GetParam()); }

  // A backward problem with the reference's answer in it.
  OwnedProblem Solved(float d_o_scale = 1) {
    OwnedProblem owned = Materialise({.name = "solved",
                                      .dtype = dtype(),
                                      .num_q_heads = 4,
                                      .sequences = {{.q_len = 40, .kv_len = 50}},
                                      .bias = std::get<1>(GetParam()),
                                      .phi_k_per_head = false,
                                      .byte_offset = 5,
                                      .direction = Direction::kBackward,
                                      .d_o_scale = d_o_scale});
    EXPECT_TRUE(RunAndWait(backend_, owned).ok());
    return owned;
  }

  // Every tensor of the problem's gradients with its type and size.
  struct Tensor {
    DType dtype;
    void* data;
    int64_t elements;
  };
  static std::vector<Tensor> TensorsOf(OwnedProblem& owned) {
    const Gradients& g = owned.problem().gradients;
    std::vector<Tensor> tensors = {{dtype(), g.dq, owned.q_elements()},
                                   {dtype(), g.dk, owned.kv_elements()},
                                   {dtype(), g.dv, owned.kv_elements()}};
    if (g.dslopes != nullptr) tensors.push_back({DType::kFloat32, g.dslopes, owned.num_slopes()});
    if (g.dphi_q != nullptr) {
      tensors.push_back({DType::kFloat32, g.dphi_q, owned.phi_q_elements()});
      tensors.push_back({DType::kFloat32, g.dphi_k, owned.phi_k_elements()});
    }
    return tensors;
  }

  ReferenceBackend backend_;
};

TEST_P(GradientJudgeTest, AcceptsTheReferenceAtAnyScale) {
  for (const float scale : {0x1p-20f, 1e-4f, 1.0f, 100.0f}) {
    EXPECT_TRUE(MatchesReferenceGradients(Solved(scale))) << scale;
  }
}

TEST_P(GradientJudgeTest, SeesEveryTensorThatIsALittleWrong) {
  OwnedProblem solved = Solved();
  const size_t tensors = TensorsOf(solved).size();
  EXPECT_EQ(tensors, std::get<1>(GetParam()) == BiasKind::kLowRank ? 5u
                     : std::get<1>(GetParam()) == BiasKind::kAlibi ? 4u
                                                                   : 3u);
  for (size_t t = 0; t < tensors; ++t) {
    OwnedProblem owned = Solved();
    const Tensor tensor = TensorsOf(owned)[t];
    const float factor = dtype() == DType::kBFloat16 ? 1.2f : 1.02f;
    for (int64_t n = 0; n < tensor.elements; ++n) {
      StoreElement(tensor.dtype, tensor.data, n,
                   factor * LoadElement(tensor.dtype, tensor.data, n));
    }
    EXPECT_FALSE(MatchesReferenceGradients(owned)) << "tensor " << t;
  }
}

TEST_P(GradientJudgeTest, SeesNanPoisonAndStrayBytes) {
  OwnedProblem fresh = Solved();
  fresh.PoisonOutputs();
  EXPECT_FALSE(MatchesReferenceGradients(fresh));
  for (size_t t = 0; t < TensorsOf(fresh).size(); ++t) {
    const size_t element = SizeOf(TensorsOf(fresh)[t].dtype);
    OwnedProblem nan = Solved();
    StoreElement(TensorsOf(nan)[t].dtype, TensorsOf(nan)[t].data, 1, std::nanf(""));
    EXPECT_FALSE(MatchesReferenceGradients(nan)) << "tensor " << t;

    OwnedProblem unwritten = Solved();
    const Tensor tensor = TensorsOf(unwritten)[t];
    std::memcpy(static_cast<char*>(tensor.data) + (tensor.elements - 1) * element,
                TensorsOf(fresh)[t].data, element);
    EXPECT_THAT(unwritten.CheckOutputs(), HasSubstr("not written")) << "tensor " << t;

    OwnedProblem stray = Solved();
    static_cast<char*>(TensorsOf(stray)[t].data)[-1] = 0;
    EXPECT_THAT(stray.CheckOutputs(), HasSubstr("beside d")) << "tensor " << t;
  }
}

std::string KindName(const ::testing::TestParamInfo<std::tuple<DType, BiasKind>>& info) {
  constexpr const char* kKinds[] = {"none", "alibi", "low_rank"};
  const auto [dtype, kind] = info.param;
  return std::string(Name(dtype)) + "_" + kKinds[static_cast<int>(kind)];
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, GradientJudgeTest,
    ::testing::Combine(::testing::Values(DType::kFloat16, DType::kBFloat16, DType::kFloat32),
                       ::testing::Values(BiasKind::kNone, BiasKind::kAlibi, BiasKind::kLowRank)),
    KindName);

TEST(Rounding, KeepsEverythingButTheDType) {
  const OwnedProblem owned =
      Materialise({.name = "rounded", .bias = BiasKind::kLowRank, .byte_offset = 3});
  OwnedProblem rounded = owned.RoundedTo(DType::kBFloat16);
  EXPECT_EQ(rounded.problem().dtype, DType::kBFloat16);
  EXPECT_EQ(rounded.problem().low_rank.dtype, DType::kFloat32);
  for (int64_t n = 0; n < owned.kv_elements(); ++n) {
    const float exact = LoadElement(DType::kFloat32, owned.problem().v, n);
    ASSERT_EQ(LoadElement(DType::kBFloat16, rounded.v(), n),
              BFloat16ToFloat(FloatToBFloat16(exact)));
  }
  for (int64_t n = 0; n < owned.phi_k_elements(); ++n) {
    ASSERT_EQ(LoadElement(DType::kFloat32, rounded.phi_k(), n),
              LoadElement(DType::kFloat32, owned.problem().low_rank.phi_k, n));
  }
  EXPECT_THAT(rounded.CheckOutputs(), HasSubstr("not written"));
}

INSTANTIATE_TEST_SUITE_P(DTypes, JudgeTest,
                         ::testing::Values(DType::kFloat16, DType::kBFloat16, DType::kFloat32),
                         [](const auto& param) { return std::string(Name(param.param)); });

}  // namespace
}  // namespace flashbias::support
