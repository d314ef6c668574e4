#include "client/answer.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "wire/contract.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kQBytes = int64_t{6} * 4 * 8 * 2;
constexpr int64_t kKvBytes = int64_t{10} * 2 * 8 * 2;

// fp16, 6 queries, 10 keys, 4 heads over 2, head_dim 8.
AttendRequest Request() {
  AttendRequest request{.want_lse = true};
  request.q = {.dtype = DType::kFloat16, .shape = {6, 4, 8}};
  request.k = request.v = {.dtype = DType::kFloat16, .shape = {10, 2, 8}};
  return request;
}

// With factors of rank 3, whose gradient is wanted.
AttendBackwardRequest BackwardRequest() {
  AttendBackwardRequest request{.forward = Request(), .want_bias_gradient = true};
  request.forward.bias = LowRankFactors{.phi_q = {.dtype = DType::kBFloat16, .shape = {6, 1, 3}},
                                        .phi_k = {.dtype = DType::kBFloat16, .shape = {10, 4, 3}}};
  return request;
}

// As a server answers it, in one message.
AnswerFields FieldsOf(const Answer& answer) {
  AnswerFields fields;
  for (const AnswerTensor& tensor : answer.tensors) {
    fields.tensors.push_back({.present = true,
                              .dtype = wire::ToWire(tensor.dtype),
                              .shape = tensor.shape,
                              .data = {.size = static_cast<size_t>(tensor.bytes)}});
  }
  return fields;
}

TEST(AnswerTest, TheTensorsOfBothDirections) {
  const absl::StatusOr<Answer> forward = ExpectAnswer(Request(), {});
  ASSERT_TRUE(forward.ok());
  EXPECT_EQ(forward->bytes(), kQBytes + 6 * 4 * 4);
  AttendBackwardRequest request = BackwardRequest();
  absl::StatusOr<Answer> backward = ExpectAnswer(request, {});
  ASSERT_TRUE(backward.ok());
  EXPECT_EQ(backward->tensors.size(), 5u);
  EXPECT_EQ(backward->bytes(), kQBytes + 2 * kKvBytes + (6 * 3 + 10 * 4 * 3) * 4);
  int place = 0;
  for (const AnswerTensor& tensor : backward->tensors) {
    EXPECT_GT(tensor.place_number, place) << "places are sent in this order";
    place = tensor.place_number;
  }
  request.want_bias_gradient = false;
  EXPECT_EQ(ExpectAnswer(request, {})->tensors.size(), 3u);
  const std::vector<float> slopes(8);
  request.want_bias_gradient = true;
  request.forward.bias = AlibiSlopes{.slopes = slopes};
  backward = ExpectAnswer(request, {});
  ASSERT_TRUE(backward.ok());
  EXPECT_EQ(backward->tensors.back().shape, (std::vector<int64_t>{2, 4})) << "two sequences";
}

TEST(AnswerTest, BuffersMustFit) {
  std::vector<char> bytes(1000);
  std::vector<float> floats(1000);
  const AttendBackwardRequest request = BackwardRequest();
  const auto error = [&](const std::function<void(GradientBuffers&)>& change) {
    GradientBuffers buffers;
    change(buffers);
    const absl::Status status = ExpectAnswer(request, buffers).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const auto some = [&](size_t count) { return absl::MakeSpan(bytes).subspan(0, count); };
  EXPECT_THAT(error([&](auto& b) { b.dq = some(383); }),
              HasSubstr("gradients.dq has 383 bytes; accepted: 384, what dq [6, 4, 8] of float16"));
  EXPECT_THAT(error([&](auto& b) { b.dk = some(384); }), HasSubstr("gradients.dk has 384 bytes"));
  EXPECT_THAT(error([&](auto& b) { b.dv = some(1); }), HasSubstr("accepted: 320"));
  EXPECT_THAT(error([&](auto& b) { b.dphi_q = absl::MakeSpan(floats); }),
              HasSubstr("gradients.dphi_q has 1000 values; accepted: 18"));
  EXPECT_THAT(error([&](auto& b) { b.dslopes = absl::MakeSpan(floats); }),
              HasSubstr("gradients.dslopes has 1000 values; accepted: 0, because the bias is"));
  AttendRequest forward = Request();
  forward.want_lse = false;
  EXPECT_THAT(
      std::string(ExpectAnswer(forward, {.lse = absl::MakeSpan(floats)}).status().message()),
      HasSubstr("result.lse has 1000 values; accepted: 0, because want_lse is false"));
  EXPECT_TRUE(ExpectAnswer(request, {.dq = some(384), .dk = some(320)}).ok());
}

TEST(AnswerTest, WhatComesMustFit) {
  for (const bool data_follows : {false, true}) {
    absl::StatusOr<Answer> answer = ExpectAnswer(BackwardRequest(), {});
    ASSERT_TRUE(answer.ok());
    AnswerFields good = FieldsOf(*answer);
    if (data_follows) {
      for (wire::TensorField& tensor : good.tensors) tensor.data.size = 0;
    }
    EXPECT_TRUE(CheckAnswer(*answer, good, data_follows).ok());
    const std::vector<std::function<void(wire::TensorField&)>> faults = {
        [](auto& t) { t = {}; },
        [](auto& t) { t.dtype = 0; },
        [](auto& t) { t.dtype = wire::kBFloat16; },
        [](auto& t) { t.shape[1] *= 2; },
        [](auto& t) { t.shape.pop_back(); },
        [](auto& t) { ++t.data.size; },
        [](auto& t) { --t.data.size; },
        [](auto& t) { t.place.region_id = 1; },
        [](auto& t) { t.place.offset = 1; }};
    for (size_t n = 0; n < good.tensors.size(); ++n) {
      for (const auto& fault : faults) {
        AnswerFields bad = good;
        fault(bad.tensors[n]);
        EXPECT_EQ(CheckAnswer(*answer, bad, data_follows).code(), absl::StatusCode::kInternal);
      }
    }
  }
}

TEST(AnswerTest, WhatIsInARegionComesWithoutData) {
  absl::StatusOr<Answer> answer = ExpectAnswer(BackwardRequest(), {});
  ASSERT_TRUE(answer.ok());
  AnswerFields fields = FieldsOf(*answer);
  answer->tensors[1].place = {.region_id = 7, .offset = 8};
  EXPECT_EQ(CheckAnswer(*answer, fields, false).code(), absl::StatusCode::kInternal);
  fields.tensors[1].place = {.region_id = 7, .offset = 8};
  EXPECT_EQ(CheckAnswer(*answer, fields, false).code(), absl::StatusCode::kInternal);
  fields.tensors[1].data.size = 0;
  EXPECT_TRUE(CheckAnswer(*answer, fields, false).ok());
}

TEST(AnswerTest, TheCallerGetsEachTensorUnderItsName) {
  absl::StatusOr<Answer> answer = ExpectAnswer(BackwardRequest(), {});
  ASSERT_TRUE(answer.ok());
  char mark = 'a';
  for (AnswerTensor& tensor : answer->tensors) *tensor.Allocate() = mark++;
  answer->timing.batch_requests = 4;
  const AttendGradients gradients = TakeGradients(*std::move(answer));
  EXPECT_EQ(gradients.dtype, DType::kFloat16);
  EXPECT_EQ(gradients.dq.size(), 384u);
  EXPECT_EQ(gradients.dq[0], 'a');
  EXPECT_EQ(gradients.dk.size(), 320u);
  EXPECT_EQ(gradients.dk[0], 'b');
  EXPECT_EQ(gradients.dv[0], 'c');
  EXPECT_EQ(gradients.dphi_q.size(), 18u);
  EXPECT_EQ(*reinterpret_cast<const char*>(gradients.dphi_q.data()), 'd');
  EXPECT_EQ(gradients.dphi_k.size(), 120u);
  EXPECT_EQ(*reinterpret_cast<const char*>(gradients.dphi_k.data()), 'e');
  EXPECT_TRUE(gradients.dslopes.empty());
  EXPECT_EQ(gradients.timing.batch_requests, 4);
}

}  // namespace
}  // namespace flashbias::client
