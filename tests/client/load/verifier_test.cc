#include "client/load/requests/verifier.h"

#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_gradients.h"

namespace flashbias::client {
namespace {

// A forward answer.
struct Answer {
  std::string o;
  std::vector<float> lse;
};

WorkloadOptions SmallShape(DType dtype, std::optional<float> eps = {}) {
  return {.heads = 4,
          .kv_heads = 2,
          .head_dim = 8,
          .seq_len = 20,
          .q_len = 12,
          .dtype = dtype,
          .eps = eps,
          .want_lse = true,
          .num_inputs = 2};
}

std::unique_ptr<RequestMix> MixOf(std::vector<MixEntryOptions> entries) {
  auto mix = RequestMix::Create({.entries = std::move(entries)});
  EXPECT_TRUE(mix.ok()) << mix.status();
  return *std::move(mix);
}
std::unique_ptr<RequestMix> Small(DType dtype, std::optional<float> eps = {}) {
  return MixOf({{.workload = SmallShape(dtype, eps)}});
}

// Of the largest lengths of entry 0.
PlannedRequest Largest(const RequestMix& mix, int input) {
  const WorkloadOptions& shape = mix.workload(0).options();
  return {.input = input, .q_len = shape.q_len, .kv_len = shape.seq_len};
}

Answer RightAnswer(const RequestMix& mix, const PlannedRequest& request) {
  const Workload& workload = mix.workload(request.entry);
  const WorkloadOptions& shape = workload.options();
  Answer answer;
  answer.o.resize(request.q_len * shape.heads * shape.head_dim * SizeOf(shape.dtype));
  const Sequence sequence = Workload::sequence(request.q_len, request.kv_len);
  const AttentionProblem problem = workload.problem(request.input, sequence);
  for (int64_t row = 0; row < request.q_len; ++row) {
    for (int head = 0; head < shape.heads; ++head) {
      const ReferenceRow reference = ReferenceAttentionRow(problem, 0, row, head);
      const int64_t begin = (row * shape.heads + head) * shape.head_dim;
      for (int64_t d = 0; d < shape.head_dim; ++d) {
        StoreElement(shape.dtype, answer.o.data(), begin + d, static_cast<float>(reference.o[d]));
      }
      answer.lse.push_back(static_cast<float>(reference.lse));
    }
  }
  return answer;
}

AnswerSample SampleOf(const Verifier& verifier, const PlannedRequest& request, const Answer& answer,
                      uint64_t draw) {
  AnswerSample sample{.request = request};
  verifier.Sample({.o = answer.o.data(), .lse = answer.lse.data()}, draw, &sample);
  return sample;
}

// Compares one answer in 200 random places.
VerifyReport Check(const RequestMix& mix, const PlannedRequest& request, const Answer& answer) {
  const Verifier verifier(&mix, /*pool_rows=*/400, /*rows_per_answer=*/200, /*seed=*/5);
  return verifier.Verify({SampleOf(verifier, request, answer, /*draw=*/7)});
}
VerifyReport Check(const RequestMix& mix, int input, const Answer& answer) {
  return Check(mix, Largest(mix, input), answer);
}

TEST(VerifierTest, RightAnswersPassInEveryDType) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const auto mix = Small(dtype);
    for (int input = 0; input < 2; ++input) {
      const VerifyReport report = Check(*mix, input, RightAnswer(*mix, Largest(*mix, input)));
      EXPECT_EQ(report.answers, 1);
      EXPECT_EQ(report.rows, 200);
      EXPECT_EQ(report.wrong, 0) << report.max_o_error;
      EXPECT_GT(report.max_o_error, 0);
      EXPECT_LT(report.max_o_error, report.limit);
    }
  }
}

TEST(VerifierTest, TheRoundingOfFewValuesIsNoFault) {
  const auto mix =
      MixOf({{.workload = {.heads = 4, .head_dim = 1, .seq_len = 64, .num_inputs = 1}}});
  // Two, as the first is of the last row.
  const Verifier verifier(mix.get(), /*pool_rows=*/256, /*rows_per_answer=*/2, /*seed=*/5);
  const Answer answer = RightAnswer(*mix, Largest(*mix, 0));
  std::vector<AnswerSample> samples;
  for (uint64_t n = 0; n < 300; ++n) {
    samples.push_back(SampleOf(verifier, Largest(*mix, 0), answer, n));
  }
  const VerifyReport report = verifier.Verify(samples);
  EXPECT_EQ(report.wrong, 0);
  // Single float16 values err by up to 2^-11.
  EXPECT_GT(report.max_o_error, report.limit);
  EXPECT_LT(report.max_o_error, 0x1p-11);
}

TEST(VerifierTest, TheAnswerToAnotherInputIsWrong) {
  const auto mix = Small(DType::kFloat32);
  EXPECT_EQ(Check(*mix, 0, RightAnswer(*mix, Largest(*mix, 1))).wrong, 1);
}

TEST(VerifierTest, SmallErrorsBeyondTheLimitAreWrong) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const auto mix = Small(dtype);
    Answer result = RightAnswer(*mix, Largest(*mix, 0));
    const int64_t count = static_cast<int64_t>(result.o.size() / SizeOf(dtype));
    const float factor = 1 + 3 * static_cast<float>(ErrorLimit(dtype));
    for (int64_t n = 0; n < count; ++n) {
      StoreElement(dtype, result.o.data(), n, LoadElement(dtype, result.o.data(), n) * factor);
    }
    EXPECT_EQ(Check(*mix, 0, result).wrong, 1) << Name(dtype);
  }
}

TEST(VerifierTest, NanIsWrong) {
  const auto mix = Small(DType::kFloat32);
  Answer result = RightAnswer(*mix, Largest(*mix, 0));
  for (int n = 0; n < 40; ++n) {
    StoreElement(DType::kFloat32, result.o.data(), n * 9, std::numeric_limits<float>::quiet_NaN());
  }
  const VerifyReport report = Check(*mix, 0, result);
  EXPECT_EQ(report.wrong, 1);
  EXPECT_TRUE(std::isinf(report.max_o_error));
}

TEST(VerifierTest, WrongLseIsWrong) {
  const auto mix = Small(DType::kFloat32);
  Answer result = RightAnswer(*mix, Largest(*mix, 0));
  for (float& lse : result.lse) lse += 0.01f;
  const VerifyReport report = Check(*mix, 0, result);
  EXPECT_EQ(report.wrong, 1);
  EXPECT_GT(report.max_lse_error, 1e-4);
  EXPECT_LT(report.max_o_error, report.limit);
}

TEST(VerifierTest, ALargeEpsWidensTheLimit) {
  const auto narrow = Small(DType::kFloat32);
  const auto wide = Small(DType::kFloat32, 0x1p-8f);
  Answer result = RightAnswer(*wide, Largest(*wide, 0));
  for (int64_t n = 0; n < static_cast<int64_t>(result.o.size() / 4); ++n) {
    const float value = LoadElement(DType::kFloat32, result.o.data(), n);
    StoreElement(DType::kFloat32, result.o.data(), n, value * 1.005f);
  }
  EXPECT_EQ(Check(*narrow, 0, result).wrong, 1);
  EXPECT_EQ(Check(*wide, 0, result).wrong, 0);
}

TEST(VerifierTest, RowsOfEveryLengthAreCompared) {
  for (const bool causal : {true, false}) {
    WorkloadOptions shape = SmallShape(DType::kFloat32);
    shape.causal = causal;
    const auto mix =
        MixOf({{.workload = shape,
                .seq_len = {.kind = LengthDistribution::Kind::kUniform, .min = 1, .max = 40},
                .q_len = {.kind = LengthDistribution::Kind::kUniform, .min = 1, .max = 40}}});
    const Verifier verifier(mix.get(), /*pool_rows=*/64, /*rows_per_answer=*/8, /*seed=*/5);
    std::vector<AnswerSample> samples;
    std::vector<AnswerSample> wrong;
    for (int64_t n = 0; n < 60; ++n) {
      const PlannedRequest request = mix->At(n);
      Answer answer = RightAnswer(*mix, request);
      samples.push_back(SampleOf(verifier, request, answer, n));
      for (const AnswerSample::Row& row : samples.back().rows) {
        ASSERT_LT(row.row, request.q_len);
        ASSERT_LT(row.head, 4);
      }
      // The last row alone: it is in every sample, though of one head.
      for (int64_t e = 0; e < 32; ++e) {
        StoreElement(DType::kFloat32, answer.o.data(), (request.q_len - 1) * 32 + e, 3.0f);
      }
      wrong.push_back(SampleOf(verifier, request, answer, n));
    }
    const VerifyReport report = verifier.Verify(samples);
    EXPECT_EQ(report.answers, 60);
    EXPECT_EQ(report.rows, 60 * 8);
    EXPECT_EQ(report.wrong, 0) << report.max_o_error;
    EXPECT_EQ(verifier.Verify(wrong).wrong, 60);
    // An answer to the same rows at other positions is another.
    PlannedRequest request = {.q_len = 5, .kv_len = 20};
    const Answer answer = RightAnswer(*mix, request);
    request.kv_len = 21;
    EXPECT_EQ(Check(*mix, request, answer).wrong, 1);
  }
}

TEST(VerifierTest, RowsThatSeeNoKeyMustBeZero) {
  WorkloadOptions shape = SmallShape(DType::kFloat32);
  shape.seq_len = 3;
  shape.q_len = 40;
  const auto mix = MixOf({{.workload = shape}});
  Answer answer = RightAnswer(*mix, Largest(*mix, 0));
  EXPECT_TRUE(std::isinf(answer.lse[0]));
  EXPECT_EQ(Check(*mix, 0, answer).wrong, 0);
  for (int64_t e = 0; e < 30 * 32; ++e) StoreElement(DType::kFloat32, answer.o.data(), e, 1e-3f);
  EXPECT_EQ(Check(*mix, 0, answer).wrong, 1);
}

TEST(VerifierTest, EntriesAreJudgedByTheirOwnLimits) {
  const auto mix = MixOf({{.workload = SmallShape(DType::kBFloat16)},
                          {.workload = SmallShape(DType::kFloat32)},
                          {.workload = SmallShape(DType::kFloat16)}});
  const Verifier verifier(mix.get(), /*pool_rows=*/64, /*rows_per_answer=*/16, /*seed=*/5);
  std::vector<AnswerSample> samples;
  for (int n = 0; n < 12; ++n) {
    PlannedRequest request = Largest(*mix, n % 2);
    request.entry = n % 3;
    Answer answer = RightAnswer(*mix, request);
    if (n % 3 == 1) {
      // Right for a 16-bit answer.
      for (int64_t e = 0; e < 12 * 4 * 8; ++e) {
        const float value = LoadElement(DType::kFloat32, answer.o.data(), e);
        StoreElement(DType::kFloat32, answer.o.data(), e, value * 1.0001f);
      }
    }
    samples.push_back(SampleOf(verifier, request, answer, n));
  }
  const VerifyReport report = verifier.Verify(samples);
  EXPECT_EQ(report.answers, 12);
  EXPECT_EQ(report.rows, 12 * 16);
  EXPECT_TRUE(report.compared_o());
  EXPECT_FALSE(report.compared_gradients());
  EXPECT_EQ(report.wrong, 4);
  ASSERT_EQ(report.entries.size(), 3u);
  EXPECT_EQ(report.entries[0].wrong, 0);
  EXPECT_EQ(report.entries[1].wrong, 4);
  EXPECT_EQ(report.entries[1].answers, 4);
  EXPECT_EQ(report.entries[2].wrong, 0);
  // The report's errors are those of the entry that is beyond its limit, though others err more.
  EXPECT_EQ(report.limit, ErrorLimit(DType::kFloat32));
  EXPECT_EQ(report.max_o_error, report.entries[1].max_o_error);
  EXPECT_NEAR(report.max_o_error, 1e-4, 1e-6);
  EXPECT_GT(report.entries[0].max_o_error, report.max_o_error);
  EXPECT_EQ(report.entries[0].limit, ErrorLimit(DType::kBFloat16));
}

TEST(VerifierTest, NoSamplesGiveTheLimits) {
  const auto mix = Small(DType::kFloat16);
  const VerifyReport report = Verifier(mix.get(), 8, 4, 1).Verify({});
  EXPECT_EQ(report.answers, 0);
  EXPECT_EQ(report.limit, ErrorLimit(DType::kFloat16));
  EXPECT_EQ(report.gradient_limit, GradientErrorLimit(DType::kFloat16));
}

TEST(VerifierTest, AnEpsThatGradientsCannotBeJudgedWithIsRefused) {
  WorkloadOptions shape = SmallShape(DType::kFloat16, 0x1p-10f);
  EXPECT_TRUE(CheckVerifiable(*MixOf({{.workload = shape}})).ok());
  shape.direction = LoadDirection::kBoth;
  EXPECT_EQ(CheckVerifiable(*MixOf({{.workload = shape}})).message(),
            "--eps is 0.000976562; accepted where gradients are verified: up to 2^-24");
  shape.eps = 0.0f;
  EXPECT_TRUE(CheckVerifiable(*MixOf({{.workload = shape}})).ok());
}

// A mix of backward calls and its right answers.
struct Backward {
  std::unique_ptr<RequestMix> mix;

  explicit Backward(DType dtype) {
    WorkloadOptions shape = SmallShape(dtype);
    shape.direction = LoadDirection::kBackward;
    mix = MixOf({{.workload = shape}});
  }
  AttendGradients Right(const PlannedRequest& request) const {
    const Sequence sequence = Workload::sequence(request.q_len, request.kv_len);
    const ReferenceGradients reference =
        ComputeReferenceGradients(mix->workload(0).problem(request.input, sequence));
    AttendGradients gradients{.dtype = mix->workload(0).options().dtype};
    const auto store = [&](const std::vector<double>& values, std::string* to) {
      to->resize(values.size() * SizeOf(gradients.dtype));
      for (size_t n = 0; n < values.size(); ++n) {
        StoreElement(gradients.dtype, to->data(), static_cast<int64_t>(n),
                     static_cast<float>(values[n]));
      }
    };
    store(reference.dq, &gradients.dq);
    store(reference.dk, &gradients.dk);
    store(reference.dv, &gradients.dv);
    return gradients;
  }
  AttendGradients Right(int input) const { return Right(Largest(*mix, input)); }
  VerifyReport Check(const PlannedRequest& request, const AttendGradients& gradients) const {
    const Verifier verifier(mix.get(), /*pool_rows=*/10, /*rows_per_answer=*/200, /*seed=*/5);
    AnswerSample sample{.request = request};
    verifier.Sample(
        {.dq = gradients.dq.data(), .dk = gradients.dk.data(), .dv = gradients.dv.data()},
        /*draw=*/7, &sample);
    return verifier.Verify({sample});
  }
  VerifyReport Check(int input, const AttendGradients& gradients) const {
    return Check(Largest(*mix, input), gradients);
  }
};

TEST(VerifierTest, GradientsOfASmallerLengthAreCompared) {
  const Backward backward(DType::kFloat32);
  const PlannedRequest request = {.input = 1, .q_len = 5, .kv_len = 9};
  EXPECT_EQ(backward.Check(request, backward.Right(request)).wrong, 0);
  const PlannedRequest other = {.input = 1, .q_len = 5, .kv_len = 10};
  EXPECT_EQ(backward.Check(request, backward.Right(other)).wrong, 1);
}

TEST(VerifierTest, RightGradientsPassInEveryDType) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const Backward backward(dtype);
    for (int input = 0; input < 2; ++input) {
      const VerifyReport report = backward.Check(input, backward.Right(input));
      EXPECT_EQ(report.answers, 1);
      EXPECT_EQ(report.rows, 600);
      EXPECT_EQ(report.gradient_rows, 600);
      EXPECT_FALSE(report.compared_o());
      EXPECT_FALSE(report.compared_lse());
      EXPECT_EQ(report.wrong, 0) << report.max_gradient_error;
      EXPECT_GT(report.max_gradient_error, 0);
    }
  }
}

TEST(VerifierTest, WrongGradientsAreFound) {
  const Backward backward(DType::kFloat16);
  for (std::string AttendGradients::*tensor :
       {&AttendGradients::dq, &AttendGradients::dk, &AttendGradients::dv}) {
    AttendGradients scaled = backward.Right(0);
    const auto count = static_cast<int64_t>((scaled.*tensor).size() / 2);
    for (int64_t n = 0; n < count; ++n) {
      StoreElement(DType::kFloat16, (scaled.*tensor).data(), n,
                   1.003f * LoadElement(DType::kFloat16, (scaled.*tensor).data(), n));
    }
    EXPECT_EQ(backward.Check(0, scaled).wrong, 1);
    AttendGradients nan = backward.Right(0);
    for (int64_t n = 0; n < count; n += 3) {
      StoreElement(DType::kFloat16, (nan.*tensor).data(), n,
                   std::numeric_limits<float>::quiet_NaN());
    }
    EXPECT_EQ(backward.Check(0, nan).wrong, 1);
  }
  EXPECT_EQ(backward.Check(0, backward.Right(1)).wrong, 1) << "of the other input";
}

}  // namespace
}  // namespace flashbias::client
