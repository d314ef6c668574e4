#include "client/load/verifier.h"

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_gradients.h"

namespace flashbias::client {
namespace {

std::unique_ptr<Workload> Small(DType dtype, std::optional<float> eps = {}) {
  absl::StatusOr<std::unique_ptr<Workload>> workload = Workload::Create({.heads = 4,
                                                                         .kv_heads = 2,
                                                                         .head_dim = 8,
                                                                         .seq_len = 20,
                                                                         .q_len = 12,
                                                                         .dtype = dtype,
                                                                         .eps = eps,
                                                                         .want_lse = true,
                                                                         .num_inputs = 2});
  EXPECT_TRUE(workload.ok()) << workload.status();
  return *std::move(workload);
}

AttendResult RightAnswer(const Workload& workload, int input) {
  const RequestSummary& shape = workload.summary();
  AttendResult result{.dtype = shape.dtype,
                      .shape = {shape.total_q, shape.num_q_heads, shape.head_dim}};
  result.o.resize(shape.total_q * shape.num_q_heads * shape.head_dim * SizeOf(shape.dtype));
  const AttentionProblem problem = workload.problem(input);
  for (int64_t row = 0; row < shape.total_q; ++row) {
    for (int head = 0; head < shape.num_q_heads; ++head) {
      const ReferenceRow reference = ReferenceAttentionRow(problem, 0, row, head);
      const int64_t begin = (row * shape.num_q_heads + head) * shape.head_dim;
      for (int64_t d = 0; d < shape.head_dim; ++d) {
        StoreElement(shape.dtype, result.o.data(), begin + d, static_cast<float>(reference.o[d]));
      }
      if (shape.want_lse) result.lse.push_back(static_cast<float>(reference.lse));
    }
  }
  return result;
}

AnswerSample SampleOf(const Verifier& verifier, int input, const AttendResult& result,
                      std::mt19937_64* random) {
  AnswerSample sample{.input = input};
  verifier.Sample(result, random, &sample);
  return sample;
}

// Compares one answer in 200 random places.
VerifyReport Check(const Workload& workload, int input, const AttendResult& result) {
  Verifier verifier(&workload, /*pool_rows=*/400, /*rows_per_answer=*/200, /*seed=*/5);
  std::mt19937_64 random(7);
  const AnswerSample samples[] = {SampleOf(verifier, input, result, &random)};
  return verifier.Verify(samples);
}

TEST(VerifierTest, RightAnswersPassInEveryDType) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const auto workload = Small(dtype);
    for (int input = 0; input < 2; ++input) {
      const VerifyReport report = Check(*workload, input, RightAnswer(*workload, input));
      EXPECT_EQ(report.answers, 1);
      EXPECT_EQ(report.rows, 200);
      EXPECT_EQ(report.wrong, 0) << report.max_o_error;
      EXPECT_GT(report.max_o_error, 0);
      EXPECT_LT(report.max_o_error, report.limit);
    }
  }
}

TEST(VerifierTest, TheRoundingOfFewValuesIsNoFault) {
  const auto workload =
      Workload::Create({.heads = 4, .head_dim = 1, .seq_len = 64, .num_inputs = 1});
  ASSERT_TRUE(workload.ok()) << workload.status();
  Verifier verifier(workload->get(), /*pool_rows=*/256, /*rows_per_answer=*/1, /*seed=*/5);
  std::mt19937_64 random(7);
  const AttendResult result = RightAnswer(**workload, 0);
  std::vector<AnswerSample> samples;
  for (int n = 0; n < 300; ++n) samples.push_back(SampleOf(verifier, 0, result, &random));
  const VerifyReport report = verifier.Verify(samples);
  EXPECT_EQ(report.wrong, 0);
  // Single float16 values err by up to 2^-11.
  EXPECT_GT(report.max_o_error, report.limit);
  EXPECT_LT(report.max_o_error, 0x1p-11);
}

TEST(VerifierTest, TheAnswerToAnotherInputIsWrong) {
  const auto workload = Small(DType::kFloat32);
  EXPECT_EQ(Check(*workload, 0, RightAnswer(*workload, 1)).wrong, 1);
}

TEST(VerifierTest, SmallErrorsBeyondTheLimitAreWrong) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const auto workload = Small(dtype);
    AttendResult result = RightAnswer(*workload, 0);
    const int64_t count = static_cast<int64_t>(result.o.size() / SizeOf(dtype));
    const float factor = 1 + 3 * static_cast<float>(ErrorLimit(dtype));
    for (int64_t n = 0; n < count; ++n) {
      StoreElement(dtype, result.o.data(), n, LoadElement(dtype, result.o.data(), n) * factor);
    }
    EXPECT_EQ(Check(*workload, 0, result).wrong, 1) << Name(dtype);
  }
}

TEST(VerifierTest, NanIsWrong) {
  const auto workload = Small(DType::kFloat32);
  AttendResult result = RightAnswer(*workload, 0);
  for (int n = 0; n < 40; ++n) {
    StoreElement(DType::kFloat32, result.o.data(), n * 9, std::numeric_limits<float>::quiet_NaN());
  }
  const VerifyReport report = Check(*workload, 0, result);
  EXPECT_EQ(report.wrong, 1);
  EXPECT_TRUE(std::isinf(report.max_o_error));
}

TEST(VerifierTest, WrongLseIsWrong) {
  const auto workload = Small(DType::kFloat32);
  AttendResult result = RightAnswer(*workload, 0);
  for (float& lse : result.lse) lse += 0.01f;
  const VerifyReport report = Check(*workload, 0, result);
  EXPECT_EQ(report.wrong, 1);
  EXPECT_GT(report.max_lse_error, 1e-4);
  EXPECT_LT(report.max_o_error, report.limit);
}

TEST(VerifierTest, ALargeEpsWidensTheLimit) {
  const auto narrow = Small(DType::kFloat32);
  const auto wide = Small(DType::kFloat32, 0x1p-8f);
  AttendResult result = RightAnswer(*wide, 0);
  for (int64_t n = 0; n < static_cast<int64_t>(result.o.size() / 4); ++n) {
    const float value = LoadElement(DType::kFloat32, result.o.data(), n);
    StoreElement(DType::kFloat32, result.o.data(), n, value * 1.005f);
  }
  EXPECT_EQ(Check(*narrow, 0, result).wrong, 1);
  EXPECT_EQ(Check(*wide, 0, result).wrong, 0);
}

TEST(WorkloadTest, OptionsOutOfRangeAreRefused) {
  for (const WorkloadOptions& options :
       {WorkloadOptions{.heads = 0}, WorkloadOptions{.heads = 3, .kv_heads = 2},
        WorkloadOptions{.head_dim = 129}, WorkloadOptions{.seq_len = 0},
        WorkloadOptions{.seq_len = 1 << 24}, WorkloadOptions{.q_len = -1},
        WorkloadOptions{.alibi = "other"}, WorkloadOptions{.num_inputs = 0},
        WorkloadOptions{.seq_len = 4, .eps = 0.5f}}) {
    EXPECT_EQ(Workload::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(WorkloadTest, InputsDifferAndFollowTheSeed) {
  const auto a = Small(DType::kFloat32);
  const auto b = Small(DType::kFloat32);
  const auto bytes = [](const Workload& workload, int input) {
    return std::string(static_cast<const char*>(workload.request(input).q.data), 12 * 4 * 8 * 4);
  };
  EXPECT_EQ(bytes(*a, 0), bytes(*b, 0));
  EXPECT_NE(bytes(*a, 0), bytes(*a, 1));
}

// A backward workload and its right answers.
struct Backward {
  std::unique_ptr<Workload> workload;

  explicit Backward(DType dtype) {
    auto made = Workload::Create({.direction = LoadDirection::kBackward,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .head_dim = 8,
                                  .seq_len = 20,
                                  .q_len = 12,
                                  .dtype = dtype,
                                  .num_inputs = 2});
    EXPECT_TRUE(made.ok()) << made.status();
    workload = *std::move(made);
  }
  AttendGradients Right(int input) const {
    const ReferenceGradients reference = ComputeReferenceGradients(workload->problem(input));
    AttendGradients gradients{.dtype = workload->summary().dtype};
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
  VerifyReport Check(int input, const AttendGradients& gradients) const {
    Verifier verifier(workload.get(), /*pool_rows=*/10, /*rows_per_answer=*/200, /*seed=*/5);
    std::mt19937_64 random(7);
    AnswerSample sample{.input = input};
    verifier.Sample(gradients, &random, &sample);
    return verifier.Verify({&sample, 1});
  }
};

TEST(VerifierTest, RightGradientsPassInEveryDType) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const Backward backward(dtype);
    for (int input = 0; input < 2; ++input) {
      const VerifyReport report = backward.Check(input, backward.Right(input));
      EXPECT_EQ(report.answers, 1);
      EXPECT_EQ(report.rows, 600);
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
