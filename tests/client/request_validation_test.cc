#include "client/request_validation.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();
const char kData[1] = {};  // never read: only slopes are

TensorView Tensor(std::vector<int64_t> shape, DType dtype = DType::kFloat16) {
  return {.dtype = dtype, .shape = std::move(shape), .data = kData};
}

AttendRequest Valid() {
  return {.q = Tensor({6, 4, 8}),
          .k = Tensor({10, 2, 8}),
          .v = Tensor({10, 2, 8}),
          .q_lens = {2, 4},
          .kv_lens = {5, 5},
          .mask = MaskKind::kCausal};
}

// What is wrong with the valid request after `change`.
std::string ErrorAfter(const std::function<void(AttendRequest&)>& change) {
  AttendRequest request = Valid();
  change(request);
  const absl::StatusOr<RequestSummary> summary = SummarizeRequest(request);
  EXPECT_EQ(summary.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(summary.status().message());
}

TEST(RequestValidationTest, SummarizesAValidRequest) {
  AttendRequest request = Valid();
  request.want_lse = true;
  const std::vector<float> slopes(8, 0.5f);
  request.bias = AlibiSlopes{.slopes = slopes};
  const absl::StatusOr<RequestSummary> summary = SummarizeRequest(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->total_q, 6);
  EXPECT_EQ(summary->total_kv, 10);
  EXPECT_EQ(summary->num_q_heads, 4);
  EXPECT_EQ(summary->num_kv_heads, 2);
  EXPECT_EQ(summary->head_dim, 8);
  EXPECT_EQ(summary->num_sequences, 2);
  EXPECT_EQ(summary->request_bytes, 2 * (6 * 4 * 8 + 2 * 10 * 2 * 8) + 4 * 8);
  EXPECT_EQ(summary->response_bytes, 2 * 6 * 4 * 8 + 4 * 6 * 4);
}

TEST(RequestValidationTest, EmptySequencesAreLegal) {
  AttendRequest request{.q = {.shape = {0, 4, 8}},
                        .k = {.shape = {0, 2, 8}},
                        .v = {.shape = {0, 2, 8}},
                        .mask = MaskKind::kFull};
  EXPECT_TRUE(SummarizeRequest(request).ok());
  request.q_lens = {0, 0};
  request.kv_lens = {0, 0};
  EXPECT_TRUE(SummarizeRequest(request).ok());
  request = Valid();
  request.kv_lens = {0, 10};
  EXPECT_TRUE(SummarizeRequest(request).ok());
}

TEST(RequestValidationTest, Tensors) {
  EXPECT_THAT(
      ErrorAfter([](auto& r) {
        r.q.shape = {6, 32};
      }),
      AllOf(HasSubstr("q.shape is [6, 32]"), HasSubstr("[total_q, num_q_heads, head_dim]")));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.k.shape = {-1, 2, 8}; }), HasSubstr("k.shape is [-1"));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.v.data = nullptr; }),
              AllOf(HasSubstr("v.data is null"), HasSubstr("320 bytes")));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.k.dtype = DType::kFloat32; }),
              AllOf(HasSubstr("k.dtype is float32"), HasSubstr("float16")));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.v.dtype = DType::kBFloat16; }), HasSubstr("v.dtype"));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.q.dtype = static_cast<DType>(7); }),
              HasSubstr("q.dtype is 7"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.q.shape = {int64_t{1} << 40, int64_t{1} << 30, 8};
              }),
              HasSubstr("2^62"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.v.shape = {9, 2, 8};
              }),
              HasSubstr("v.shape is [9, 2, 8]"));
}

TEST(RequestValidationTest, Heads) {
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.q.shape = {6, 3, 8};
              }),
              AllOf(HasSubstr("num_q_heads, q.shape[1], is 3"), HasSubstr("num_kv_heads, 2")));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.q.shape = {6, 0, 8}; }), HasSubstr("num_q_heads"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.q.shape = {6, 65538, 8};
              }),
              AllOf(HasSubstr("num_q_heads, q.shape[1], is 65538"), HasSubstr("1 to 65536")));
  AttendRequest most = Valid();
  most.q.shape = {6, 65536, 8};
  EXPECT_TRUE(SummarizeRequest(most).ok());
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.k.shape = r.v.shape = {10, 0, 8};
              }),
              HasSubstr("num_kv_heads"));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.q.shape = {6, 4, 0}; }), HasSubstr("head_dim"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.q.shape = {6, 4, 129};
              }),
              AllOf(HasSubstr("is 129"), HasSubstr("1 to 128")));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.k.shape = r.v.shape = {10, 2, 16};
              }),
              HasSubstr("k.shape is [10, 2, 16]"));
}

TEST(RequestValidationTest, Lengths) {
  EXPECT_THAT(ErrorAfter([](auto& r) { r.q_lens = {6}; }),
              HasSubstr("q_lens has 1 entries and kv_lens 2"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.q_lens = {2, 5};
              }),
              AllOf(HasSubstr("sum of q_lens is 7"), HasSubstr("q.shape[0], 6")));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.kv_lens = {11, -1}; }), HasSubstr("kv_lens[1] is -1"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
                r.q_lens = {kMax, kMax};
              }),
              HasSubstr("sum of q_lens"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.q_lens.assign(65537, 0);
                r.kv_lens.assign(65537, 0);
              }),
              HasSubstr("up to 65536"));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.query_start = {1}; }),
              AllOf(HasSubstr("query_start has 1 entries"), HasSubstr("one per sequence, 2")));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.key_start = {0, (int64_t{1} << 48) + 1};
              }),
              HasSubstr("key_start[1] is 281474976710657"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.query_start = {std::numeric_limits<int64_t>::min(), 0};
              }),
              HasSubstr("query_start[0]"));
}

TEST(RequestValidationTest, Scalars) {
  EXPECT_THAT(ErrorAfter([](auto& r) { r.mask = MaskKind::kUnspecified; }),
              AllOf(HasSubstr("mask is unspecified"), HasSubstr("causal, full")));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.left_window = -1; }), HasSubstr("left_window is -1"));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.softmax_scale = kNan; }),
              HasSubstr("softmax_scale is nan"));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.softmax_scale = -kInfinity; }),
              HasSubstr("softmax_scale"));
  for (const float eps : {-1e-9f, kNan, 0.00391f}) {
    EXPECT_THAT(ErrorAfter([eps](auto& r) { r.eps = eps; }), HasSubstr("eps is ")) << eps;
  }
  for (const float eps : {0.0f, 0x1p-8f}) {
    AttendRequest request = Valid();
    request.eps = eps;
    EXPECT_TRUE(SummarizeRequest(request).ok());
  }
}

TEST(RequestValidationTest, Slopes) {
  const std::vector<float> three(3, 1.0f);
  EXPECT_THAT(ErrorAfter([&](auto& r) { r.bias = AlibiSlopes{.slopes = three}; }),
              AllOf(HasSubstr("alibi.slopes has 3 entries"), HasSubstr("num_q_heads, 4")));
  EXPECT_THAT(ErrorAfter([&](auto& r) { r.bias = AlibiSlopes{}; }), HasSubstr("has 0 entries"));
  for (const float wrong : {kNan, kInfinity, -kInfinity}) {
    const std::vector<float> slopes = {1, 2, wrong, 4};
    EXPECT_THAT(ErrorAfter([&](auto& r) { r.bias = AlibiSlopes{.slopes = slopes}; }),
                HasSubstr("alibi.slopes[2] is "));
  }
  const std::vector<float> legal = {0, -1, 1e-30f, 256};
  AttendRequest request = Valid();
  request.bias = AlibiSlopes{.slopes = legal};
  EXPECT_TRUE(SummarizeRequest(request).ok());
}

TEST(RequestValidationTest, Factors) {
  const auto error = [](std::vector<int64_t> phi_q, std::vector<int64_t> phi_k,
                        DType k_dtype = DType::kFloat32) {
    return ErrorAfter([&](auto& r) {
      r.bias =
          LowRankFactors{.phi_q = Tensor(phi_q, DType::kFloat32), .phi_k = Tensor(phi_k, k_dtype)};
    });
  };
  EXPECT_THAT(error({6, 4}, {10, 4, 2}), HasSubstr("low_rank.phi_q.shape is [6, 4]"));
  EXPECT_THAT(error({5, 4, 2}, {10, 4, 2}), HasSubstr("q.shape[0], 6"));
  EXPECT_THAT(error({6, 4, 2}, {6, 4, 2}), HasSubstr("k.shape[0], 10"));
  EXPECT_THAT(error({6, 2, 2}, {10, 4, 2}), HasSubstr("num_q_heads, 4, or 1"));
  EXPECT_THAT(error({6, 4, 0}, {10, 4, 0}), HasSubstr("rank of 1 to 64"));
  EXPECT_THAT(error({6, 4, 65}, {10, 4, 65}), HasSubstr("rank of 1 to 64"));
  EXPECT_THAT(error({6, 4, 2}, {10, 1, 3}), HasSubstr("the rank of low_rank.phi_q, 2"));
  EXPECT_THAT(error({6, 4, 2}, {10, 4, 2}, DType::kFloat16), HasSubstr("low_rank.phi_k.dtype"));
  AttendRequest request = Valid();
  request.bias = LowRankFactors{.phi_q = Tensor({6, 1, 64}), .phi_k = Tensor({10, 4, 64})};
  EXPECT_TRUE(SummarizeRequest(request).ok());
}

AttendBackwardRequest ValidBackward(const std::vector<float>& lse) {
  AttendBackwardRequest request{.forward = Valid(), .lse = lse};
  request.o = request.d_o = request.forward.q;
  return request;
}

TEST(RequestValidationTest, BackwardRequestsAreSummed) {
  const std::vector<float> lse(6 * 4);
  AttendBackwardRequest request = ValidBackward(lse);
  absl::StatusOr<RequestSummary> summary = SummarizeRequest(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  const absl::StatusOr<RequestSummary> forward = SummarizeRequest(request.forward);
  ASSERT_TRUE(forward.ok());
  const int64_t q_bytes = 6 * 4 * 8 * 2;
  EXPECT_EQ(summary->request_bytes, forward->request_bytes + 2 * q_bytes + 6 * 4 * 4);
  EXPECT_EQ(summary->response_bytes, forward->request_bytes);
  EXPECT_FALSE(summary->want_lse);

  const std::vector<float> slopes(4);
  request.forward.bias = AlibiSlopes{.slopes = slopes};
  request.forward.want_lse = true;
  request.want_bias_gradient = true;
  summary = SummarizeRequest(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->response_bytes, forward->request_bytes + 16);
  EXPECT_FALSE(summary->want_lse) << "that of the forward call is not looked at";

  request.forward.bias = LowRankFactors{.phi_q = Tensor({6, 1, 3}, DType::kFloat16),
                                        .phi_k = Tensor({10, 4, 3}, DType::kFloat16)};
  summary = SummarizeRequest(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->response_bytes, forward->request_bytes + (6 * 3 + 10 * 4 * 3) * 4)
      << "gradients of factors are float32";
}

TEST(RequestValidationTest, WhatABackwardRequestAdds) {
  const auto error = [](const std::function<void(AttendBackwardRequest&)>& change) {
    const std::vector<float> lse(6 * 4);
    AttendBackwardRequest request = ValidBackward(lse);
    change(request);
    const absl::Status status = SummarizeRequest(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(error([](auto& r) { r.forward.mask = MaskKind::kUnspecified; }),
              HasSubstr("mask is unspecified"));
  EXPECT_THAT(error([](auto& r) { r.o = {}; }), HasSubstr("o.shape is []; accepted: 3 extents"));
  EXPECT_THAT(error([](auto& r) { r.d_o = {}; }), HasSubstr("d_o.shape is []"));
  EXPECT_THAT(error([](auto& r) { r.o.dtype = DType::kFloat32; }),
              HasSubstr("o.dtype is float32; accepted: that of q, float16"));
  EXPECT_THAT(error([](auto& r) {
                r.d_o.shape = {6, 8, 4};
              }),
              HasSubstr("d_o.shape is [6, 8, 4]; accepted: that of q, [6, 4, 8]"));
  EXPECT_THAT(error([](auto& r) { r.d_o.data = nullptr; }), HasSubstr("d_o.data is null"));
  EXPECT_THAT(error([](auto& r) { r.lse = r.lse.subspan(1); }),
              HasSubstr("lse has 23 values; accepted: 24"));
  EXPECT_THAT(error([](auto& r) { r.want_bias_gradient = true; }),
              HasSubstr("want_bias_gradient is true without a bias"));
}

}  // namespace
}  // namespace flashbias::client
