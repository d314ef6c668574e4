#include "server/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "flashbias/v1/attention.pb.h"
#include "kernels/heap_allocator.h"

namespace flashbias::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr DType kDTypes[] = {DType::kFloat16, DType::kFloat32};

AttendLimits Limits() { return {.dtypes = kDTypes, .max_message_bytes = 1 << 20}; }

void Fill(v1::Tensor* tensor, v1::DType dtype, const std::vector<int64_t>& shape) {
  tensor->Clear();
  tensor->set_dtype(dtype);
  size_t elements = 1;
  for (const int64_t extent : shape) {
    tensor->add_shape(extent);
    elements *= static_cast<size_t>(extent);
  }
  const size_t size = dtype == v1::DTYPE_FLOAT32 ? 4 : 2;
  tensor->set_data(std::string(elements * size, '\0'));
}

void FillFloats(v1::Tensor* tensor, const std::vector<int64_t>& shape,
                const std::vector<float>& values) {
  Fill(tensor, v1::DTYPE_FLOAT32, shape);
  tensor->set_data(std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4));
}

// 6 queries, 8 keys, 4 query heads over 2, head_dim 16.
v1::AttendRequest Good() {
  v1::AttendRequest request;
  request.set_mask(v1::MASK_CAUSAL);
  Fill(request.mutable_q(), v1::DTYPE_FLOAT32, {6, 4, 16});
  Fill(request.mutable_k(), v1::DTYPE_FLOAT32, {8, 2, 16});
  Fill(request.mutable_v(), v1::DTYPE_FLOAT32, {8, 2, 16});
  return request;
}

grpc::ByteBuffer Bytes(const v1::AttendRequest& request) {
  const grpc::Slice slice(request.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::StatusOr<DecodedAttend> DecodeAttendRequest(grpc::ByteBuffer* bytes,
                                                  const AttendLimits& limits) {
  static auto* const allocator = new HeapAllocator;
  absl::StatusOr<ParsedAttend> parsed = ParseAttendRequest(Direction::kForward, bytes, limits);
  if (!parsed.ok()) return parsed.status();
  return StageAttendRequest(*std::move(parsed), *allocator, nullptr);
}

absl::StatusOr<DecodedAttend> Decode(const v1::AttendRequest& request,
                                     const AttendLimits& limits = Limits()) {
  grpc::ByteBuffer bytes = Bytes(request);
  return DecodeAttendRequest(&bytes, limits);
}

TEST(CodecTest, DefaultsAreFilledIn) {
  v1::AttendRequest request = Good();
  const auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionProblem& p = decoded->problem;
  EXPECT_EQ(p.dtype, DType::kFloat32);
  EXPECT_EQ(p.num_q_heads, 4);
  EXPECT_EQ(p.num_kv_heads, 2);
  EXPECT_EQ(p.head_dim, 16);
  EXPECT_EQ(p.total_q, 6);
  EXPECT_EQ(p.total_kv, 8);
  EXPECT_TRUE(p.mask.causal);
  EXPECT_EQ(p.mask.left_window, 0);
  EXPECT_EQ(p.softmax_scale, 0.25f);
  EXPECT_EQ(p.eps, kDefaultEps);
  EXPECT_EQ(p.bias_kind, BiasKind::kNone);
  EXPECT_EQ(p.lse, nullptr);
  ASSERT_EQ(p.sequences.size(), 1u);
  EXPECT_EQ(p.sequences[0].q_len, 6);
  EXPECT_EQ(p.sequences[0].kv_len, 8);
  EXPECT_EQ(p.sequences[0].query_start, 2) << "queries stand at the end of the keys";
  EXPECT_EQ(p.sequences[0].key_start, 0);
  EXPECT_GE(decoded->bytes, (2 * 6 * 4 + 2 * 8 * 2) * 16 * 4) << "q, k, v and o";
  EXPECT_LE(decoded->bytes, (2 * 6 * 4 + 2 * 8 * 2) * 16 * 4 + 4 * 256 + 64);
}

TEST(CodecTest, EveryFieldArrives) {
  v1::AttendRequest request = Good();
  for (const int64_t n : {1, 0, 5}) request.add_q_lens(n);
  for (const int64_t n : {0, 3, 5}) request.add_kv_lens(n);
  for (const int64_t n : {-7, 0, 100}) request.add_query_start(n);
  for (const int64_t n : {int64_t{-9}, int64_t{1}, int64_t{1} << 48}) request.add_key_start(n);
  request.set_mask(v1::MASK_FULL);
  request.set_left_window(17);
  request.set_softmax_scale(-0.5f);
  request.set_eps(0);
  request.set_want_lse(true);
  std::vector<float> slopes;
  for (int n = 0; n < 12; ++n) slopes.push_back(static_cast<float>(n) - 3);
  FillFloats(request.mutable_alibi()->mutable_slopes(), {3, 4}, slopes);
  const auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionProblem& p = decoded->problem;
  EXPECT_FALSE(p.mask.causal);
  EXPECT_EQ(p.mask.left_window, 17);
  EXPECT_EQ(p.softmax_scale, -0.5f);
  EXPECT_EQ(p.eps, 0);
  EXPECT_NE(p.lse, nullptr);
  ASSERT_EQ(p.sequences.size(), 3u);
  EXPECT_EQ(p.sequences[2].q_begin, 1);
  EXPECT_EQ(p.sequences[2].kv_begin, 3);
  EXPECT_EQ(p.sequences[2].query_start, 100);
  EXPECT_EQ(p.sequences[2].key_start, int64_t{1} << 48);
  EXPECT_EQ(p.sequences[0].key_start, -9);
  EXPECT_EQ(p.bias_kind, BiasKind::kAlibi);
  EXPECT_TRUE(p.alibi.per_sequence);
  EXPECT_EQ(SlopesOf(p, 2)[3], 8.0f);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(p.alibi.slopes) % alignof(float), 0u);
}

TEST(CodecTest, QueryStartFollowsKeyStart) {
  v1::AttendRequest request = Good();
  request.add_key_start(1000);
  const auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->problem.sequences[0].query_start, 1002);
}

TEST(CodecTest, LowRankFactorsArrive) {
  v1::AttendRequest request = Good();
  Fill(request.mutable_low_rank()->mutable_phi_q(), v1::DTYPE_BFLOAT16, {6, 1, 5});
  Fill(request.mutable_low_rank()->mutable_phi_k(), v1::DTYPE_BFLOAT16, {8, 4, 5});
  const auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const LowRankBias& bias = decoded->problem.low_rank;
  EXPECT_EQ(decoded->problem.bias_kind, BiasKind::kLowRank);
  EXPECT_EQ(bias.dtype, DType::kBFloat16);
  EXPECT_EQ(bias.rank, 5);
  EXPECT_EQ(bias.phi_q_heads, 1);
  EXPECT_EQ(bias.phi_k_heads, 4);
}

TEST(CodecTest, EmptySequencesAndEmptyTensorsAreLegal) {
  v1::AttendRequest request = Good();
  Fill(request.mutable_q(), v1::DTYPE_FLOAT16, {0, 4, 16});
  Fill(request.mutable_k(), v1::DTYPE_FLOAT16, {0, 4, 16});
  Fill(request.mutable_v(), v1::DTYPE_FLOAT16, {0, 4, 16});
  request.set_want_lse(true);
  auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ASSERT_EQ(decoded->problem.sequences.size(), 1u);
  const grpc::ByteBuffer bytes =
      EncodeAttendResponse(decoded->problem, std::move(decoded->storage), {});
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(bytes.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  v1::AttendResponse response;
  ASSERT_TRUE(response.ParseFromString(text));
  EXPECT_THAT(response.o().shape(), ElementsAre(0, 4, 16));
  EXPECT_THAT(response.lse().shape(), ElementsAre(0, 4));
  EXPECT_TRUE(response.o().data().empty());
}

TEST(CodecTest, ResponseRoundTrip) {
  v1::AttendRequest request = Good();
  request.set_want_lse(true);
  auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionProblem& p = decoded->problem;
  for (int n = 0; n < 6 * 4 * 16; ++n) StoreElement(p.dtype, p.o, n, static_cast<float>(n));
  for (int n = 0; n < 6 * 4; ++n) p.lse[n] = static_cast<float>(-n);
  const grpc::ByteBuffer bytes =
      EncodeAttendResponse(p, std::move(decoded->storage),
                           {.receive = absl::Milliseconds(1),
                            .queue = absl::Milliseconds(2),
                            .compute = absl::Milliseconds(3),
                            .send = absl::Milliseconds(4),
                            .batch_requests = 5,
                            .stats = {.tiles_computed = 6, .tiles_skipped = 7}});
  EXPECT_LE(bytes.Length(), 6u * 4 * 16 * 4 + 6 * 4 * 4 + kResponseOverheadBytes);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(bytes.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  v1::AttendResponse response;
  ASSERT_TRUE(response.ParseFromString(text));
  EXPECT_EQ(response.timing().receive_seconds(), 0.001);
  EXPECT_EQ(response.timing().queue_seconds(), 0.002);
  EXPECT_EQ(response.timing().compute_seconds(), 0.003);
  EXPECT_EQ(response.timing().send_seconds(), 0.004);
  EXPECT_EQ(response.timing().batch_requests(), 5);
  EXPECT_EQ(response.timing().tiles_computed(), 6);
  EXPECT_EQ(response.timing().tiles_skipped(), 7);
  EXPECT_EQ(response.o().dtype(), v1::DTYPE_FLOAT32);
  EXPECT_THAT(response.o().shape(), ElementsAre(6, 4, 16));
  ASSERT_EQ(response.o().data().size(), 6u * 4 * 16 * 4);
  EXPECT_EQ(LoadElement(DType::kFloat32, response.o().data().data(), 383), 383.0f);
  EXPECT_EQ(LoadElement(DType::kFloat32, response.o().data().data(), 5), 5.0f);
  EXPECT_EQ(response.lse().dtype(), v1::DTYPE_FLOAT32);
  EXPECT_THAT(response.lse().shape(), ElementsAre(6, 4));
  ASSERT_EQ(response.lse().data().size(), 6u * 4 * 4);
  EXPECT_EQ(LoadElement(DType::kFloat32, response.lse().data().data(), 23), -23.0f);
}

TEST(CodecTest, AMessageInManySlicesIsRead) {
  const std::string text = Good().SerializeAsString();
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < text.size(); at += 7) slices.emplace_back(text.substr(at, 7));
  grpc::ByteBuffer bytes(slices.data(), slices.size());
  const auto decoded = DecodeAttendRequest(&bytes, Limits());
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(bytes.Length(), 0u) << "the message's memory is let go";
}

TEST(CodecTest, GarbageAndEmptyMessagesAreRefused) {
  const grpc::Slice slice(std::string("\xff\xff\xff garbage"));
  grpc::ByteBuffer garbage(&slice, 1);
  EXPECT_THAT(DecodeAttendRequest(&garbage, Limits()).status().ToString(),
              HasSubstr("is no flashbias.v1.AttendRequest"));
  grpc::ByteBuffer empty;
  EXPECT_THAT(DecodeAttendRequest(&empty, Limits()).status().ToString(),
              HasSubstr("INVALID_ARGUMENT: q is missing"));
}

TEST(CodecTest, RowsOfASequenceAreLimitedByTheBackend) {
  const v1::AttendRequest request = Good();
  AttendLimits limits = Limits();
  limits.max_sequence_rows = 8;
  EXPECT_TRUE(Decode(request, limits).ok());
  limits.max_sequence_rows = 3;
  EXPECT_THAT(std::string(Decode(request, limits).status().message()),
              HasSubstr("accepted by this server's backend: at most 3"));
}

TEST(CodecTest, AResponseBeyondTheLimitIsRefusedUpFront) {
  v1::AttendRequest request = Good();
  AttendLimits limits = Limits();
  limits.max_message_bytes = 6 * 4 * 16 * 4 + kResponseOverheadBytes;
  EXPECT_TRUE(Decode(request, limits).ok());
  request.set_want_lse(true);
  const absl::Status status = Decode(request, limits).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("(lse 96, o 1536); the limit is 2048"));
}

template <typename Message>
Message Parse(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(bytes.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  Message message;
  EXPECT_TRUE(message.ParseFromString(text));
  return message;
}

// The gradients of Good().
v1::AttendBackwardRequest GoodBackward() {
  v1::AttendBackwardRequest request;
  *request.mutable_forward() = Good();
  Fill(request.mutable_lse(), v1::DTYPE_FLOAT32, {6, 4});
  Fill(request.mutable_o(), v1::DTYPE_FLOAT32, {6, 4, 16});
  Fill(request.mutable_d_o(), v1::DTYPE_FLOAT32, {6, 4, 16});
  return request;
}

absl::StatusOr<DecodedAttend> Decode(const v1::AttendBackwardRequest& request,
                                     const AttendLimits& limits = Limits()) {
  static auto* const allocator = new HeapAllocator;
  const grpc::Slice slice(request.SerializeAsString());
  grpc::ByteBuffer bytes(&slice, 1);
  absl::StatusOr<ParsedAttend> parsed = ParseAttendRequest(Direction::kBackward, &bytes, limits);
  if (!parsed.ok()) return parsed.status();
  return StageAttendRequest(*std::move(parsed), *allocator, nullptr);
}

TEST(CodecBackwardTest, EveryTensorArrivesAndHasAPlace) {
  v1::AttendBackwardRequest request = GoodBackward();
  char first = 'a';
  for (v1::Tensor* tensor :
       {request.mutable_forward()->mutable_q(), request.mutable_forward()->mutable_k(),
        request.mutable_forward()->mutable_v(), request.mutable_lse(), request.mutable_o(),
        request.mutable_d_o()}) {
    tensor->mutable_data()->front() = first++;
  }
  const auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionProblem& p = decoded->problem;
  EXPECT_EQ(p.direction, Direction::kBackward);
  first = 'a';
  for (const void* tensor :
       std::initializer_list<const void*>{p.q, p.k, p.v, p.lse, p.o, p.gradients.d_o}) {
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(*static_cast<const char*>(tensor), first++);
  }
  EXPECT_NE(p.gradients.dq, nullptr);
  EXPECT_NE(p.gradients.dk, nullptr);
  EXPECT_NE(p.gradients.dv, nullptr);
  EXPECT_EQ(p.gradients.dslopes, nullptr);
  EXPECT_EQ(p.gradients.dphi_q, nullptr);
  EXPECT_EQ(p.gradients.dphi_k, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(p.lse) % alignof(float), 0u);
  // q, o, d_o and dq; k, v, dk and dv; lse.
  constexpr int64_t kBytes = 4 * 6 * 4 * 16 * 4 + 4 * 8 * 2 * 16 * 4 + 6 * 4 * 4;
  EXPECT_GE(decoded->bytes, kBytes);
  EXPECT_LE(decoded->bytes, kBytes + 9 * 256 + 64);
}

TEST(CodecBackwardTest, ResponseRoundTripWithSlopes) {
  v1::AttendBackwardRequest request = GoodBackward();
  FillFloats(request.mutable_forward()->mutable_alibi()->mutable_slopes(), {1, 4}, {1, 2, 3, 4});
  request.set_want_bias_gradient(true);
  auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionProblem& p = decoded->problem;
  ASSERT_NE(p.gradients.dslopes, nullptr);
  EXPECT_EQ(p.gradients.dphi_q, nullptr);
  for (int n = 0; n < 4; ++n) p.gradients.dslopes[n] = static_cast<float>(-n);
  for (int n = 0; n < 384; ++n) StoreElement(p.dtype, p.gradients.dq, n, static_cast<float>(n));
  for (int n = 0; n < 256; ++n) StoreElement(p.dtype, p.gradients.dk, n, static_cast<float>(2 * n));
  for (int n = 0; n < 256; ++n) StoreElement(p.dtype, p.gradients.dv, n, static_cast<float>(3 * n));
  const auto response = Parse<v1::AttendBackwardResponse>(
      EncodeAttendResponse(p, std::move(decoded->storage), {.batch_requests = 5}));
  EXPECT_EQ(response.timing().batch_requests(), 5);
  EXPECT_THAT(response.dslopes().shape(), ElementsAre(1, 4));
  ASSERT_EQ(response.dslopes().data().size(), 16u);
  EXPECT_EQ(LoadElement(DType::kFloat32, response.dslopes().data().data(), 3), -3.0f);
  EXPECT_FALSE(response.has_dphi_q());
  EXPECT_FALSE(response.has_dphi_k());
  int factor = 1;
  for (const v1::Tensor* tensor : {&response.dq(), &response.dk(), &response.dv()}) {
    EXPECT_EQ(tensor->dtype(), v1::DTYPE_FLOAT32);
    EXPECT_EQ(LoadElement(DType::kFloat32, tensor->data().data(), 255), 255.0f * factor++);
  }
  EXPECT_THAT(response.dq().shape(), ElementsAre(6, 4, 16));
  EXPECT_THAT(response.dk().shape(), ElementsAre(8, 2, 16));
  EXPECT_THAT(response.dv().shape(), ElementsAre(8, 2, 16));
  EXPECT_EQ(response.dq().data().size(), 1536u);
  EXPECT_EQ(response.dk().data().size(), 1024u);
}

TEST(CodecBackwardTest, GradientsOfFactorsAreFloat32) {
  v1::AttendBackwardRequest request = GoodBackward();
  v1::LowRankBias* const bias = request.mutable_forward()->mutable_low_rank();
  Fill(bias->mutable_phi_q(), v1::DTYPE_BFLOAT16, {6, 1, 5});
  Fill(bias->mutable_phi_k(), v1::DTYPE_BFLOAT16, {8, 4, 5});
  request.set_want_bias_gradient(true);
  auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionProblem& p = decoded->problem;
  ASSERT_NE(p.gradients.dphi_q, nullptr);
  ASSERT_NE(p.gradients.dphi_k, nullptr);
  EXPECT_EQ(p.gradients.dslopes, nullptr);
  for (int n = 0; n < 30; ++n) p.gradients.dphi_q[n] = 1;
  for (int n = 0; n < 160; ++n) p.gradients.dphi_k[n] = 2;
  const auto response =
      Parse<v1::AttendBackwardResponse>(EncodeAttendResponse(p, std::move(decoded->storage), {}));
  EXPECT_FALSE(response.has_dslopes());
  EXPECT_THAT(response.dphi_q().shape(), ElementsAre(6, 1, 5));
  EXPECT_THAT(response.dphi_k().shape(), ElementsAre(8, 4, 5));
  EXPECT_EQ(response.dphi_q().dtype(), v1::DTYPE_FLOAT32);
  ASSERT_EQ(response.dphi_k().data().size(), 640u);
  EXPECT_EQ(LoadElement(DType::kFloat32, response.dphi_k().data().data(), 159), 2.0f);

  request.set_want_bias_gradient(false);
  const auto unwanted = Decode(request);
  ASSERT_TRUE(unwanted.ok());
  EXPECT_EQ(unwanted->problem.gradients.dphi_q, nullptr);
}

TEST(CodecBackwardTest, AResponseBeyondTheLimitIsRefusedUpFront) {
  const v1::AttendBackwardRequest request = GoodBackward();
  AttendLimits limits = Limits();
  limits.max_message_bytes = 1536 + 2 * 1024 + kResponseOverheadBytes;
  EXPECT_TRUE(Decode(request, limits).ok());
  --limits.max_message_bytes;
  const absl::Status status = Decode(request, limits).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("(dq 1536, dk 1024, dv 1024)"));
}

TEST(CodecBackwardTest, AResponseTakesNoMoreThanItsBound) {
  v1::AttendBackwardRequest request = GoodBackward();
  v1::LowRankBias* const bias = request.mutable_forward()->mutable_low_rank();
  Fill(bias->mutable_phi_q(), v1::DTYPE_FLOAT32, {6, 4, 5});
  Fill(bias->mutable_phi_k(), v1::DTYPE_FLOAT32, {8, 4, 5});
  request.set_want_bias_gradient(true);
  auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const absl::Duration second = absl::Seconds(1);
  const grpc::ByteBuffer bytes = EncodeAttendResponse(decoded->problem, std::move(decoded->storage),
                                                      {.receive = second,
                                                       .queue = second,
                                                       .compute = second,
                                                       .send = second,
                                                       .batch_requests = int64_t{1} << 62,
                                                       .stats = {.tiles_computed = int64_t{1} << 62,
                                                                 .tiles_skipped = int64_t{1} << 62,
                                                                 .upload = second,
                                                                 .kernel = second,
                                                                 .download = second}});
  EXPECT_LE(bytes.Length(), 1536u + 2 * 1024 + 480 + 640 + kResponseOverheadBytes);
}

struct BackwardRefusal {
  std::string name;
  std::function<void(v1::AttendBackwardRequest*)> change;
  std::vector<std::string> want;  // pieces of the message
};

class CodecBackwardRefusalTest : public testing::TestWithParam<BackwardRefusal> {};

TEST_P(CodecBackwardRefusalTest, NamesWhatIsWrong) {
  v1::AttendBackwardRequest request = GoodBackward();
  GetParam().change(&request);
  const absl::Status status = Decode(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  for (const std::string& piece : GetParam().want) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(piece));
  }
}

const BackwardRefusal kBackwardRefusals[] = {
    {"NoForward", [](auto* r) { r->clear_forward(); }, {"q is missing"}},
    {"ForwardIsChecked",
     [](auto* r) { r->mutable_forward()->clear_mask(); },
     {"mask is unspecified"}},
    {"WantLse",
     [](auto* r) { r->mutable_forward()->set_want_lse(true); },
     {"want_lse is set; accepted: not with gradients"}},
    {"OPlace",
     [](auto* r) { r->mutable_forward()->mutable_o_place(); },
     {"o_place is set", "dq_place"}},
    {"LsePlace",
     [](auto* r) { r->mutable_forward()->mutable_lse_place(); },
     {"lse_place is set", "dq_place"}},
    {"NoBias",
     [](auto* r) { r->set_want_bias_gradient(true); },
     {"want_bias_gradient is set without a bias"}},
    {"NoLse", [](auto* r) { r->clear_lse(); }, {"lse is missing", "[total_q, num_q_heads]"}},
    {"NoO", [](auto* r) { r->clear_o(); }, {"o is missing", "[total_q, num_q_heads, head_dim]"}},
    {"NoDO", [](auto* r) { r->clear_d_o(); }, {"d_o is missing"}},
    {"LseDType",
     [](auto* r) {
       Fill(r->mutable_lse(), v1::DTYPE_FLOAT16, {6, 4});
     },
     {"lse.dtype is float16; accepted: float32"}},
    {"LseExtents",
     [](auto* r) {
       Fill(r->mutable_lse(), v1::DTYPE_FLOAT32, {6, 4, 1});
     },
     {"lse.shape has 3 extents"}},
    {"LseRows",
     [](auto* r) {
       Fill(r->mutable_lse(), v1::DTYPE_FLOAT32, {4, 6});
     },
     {"lse.shape is [4, 6]; accepted: [6, 4]"}},
    {"LseTooShort",
     [](auto* r) { r->mutable_lse()->mutable_data()->pop_back(); },
     {"lse.data has 95 bytes; accepted: 96"}},
    {"ODType",
     [](auto* r) {
       Fill(r->mutable_o(), v1::DTYPE_FLOAT16, {6, 4, 16});
     },
     {"o.dtype is float16; accepted: that of q, float32"}},
    {"OShape",
     [](auto* r) {
       Fill(r->mutable_o(), v1::DTYPE_FLOAT32, {8, 2, 16});
     },
     {"o.shape is [8, 2, 16]; accepted: that of q, [6, 4, 16]"}},
    {"DOShape",
     [](auto* r) {
       Fill(r->mutable_d_o(), v1::DTYPE_FLOAT32, {6, 4, 15});
     },
     {"d_o.shape is [6, 4, 15]; accepted: that of q"}},
    {"DOTooLong",
     [](auto* r) { r->mutable_d_o()->mutable_data()->push_back('x'); },
     {"d_o.data has 1537 bytes; accepted: 1536"}},
    {"DOOverflows",
     [](auto* r) { r->mutable_d_o()->set_shape(0, int64_t{1} << 60); },
     {"d_o.shape", "2^62"}},
    {"FactorsPlaceUnwanted",
     [](auto* r) { r->mutable_dphi_k_place(); },
     {"dphi_k_place is set; accepted: only with low_rank and want_bias_gradient"}},
    {"PlaceWithoutRegions",
     [](auto* r) { r->mutable_dk_place()->set_region_id(1); },
     {"dk_place.region_id is set; accepted: only in calls over the server's unix socket"}},
};

INSTANTIATE_TEST_SUITE_P(All, CodecBackwardRefusalTest, testing::ValuesIn(kBackwardRefusals),
                         [](const testing::TestParamInfo<BackwardRefusal>& refusal) {
                           return refusal.param.name;
                         });

struct Refusal {
  std::string name;
  std::function<void(v1::AttendRequest*)> change;
  std::vector<std::string> want;  // pieces of the message
};

class CodecRefusalTest : public testing::TestWithParam<Refusal> {};

TEST_P(CodecRefusalTest, NamesWhatIsWrong) {
  v1::AttendRequest request = Good();
  GetParam().change(&request);
  const absl::Status status = Decode(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  for (const std::string& piece : GetParam().want) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(piece));
  }
}

void SetShape(v1::Tensor* tensor, const std::vector<int64_t>& shape) {
  tensor->clear_shape();
  for (const int64_t extent : shape) tensor->add_shape(extent);
}

void SetFactors(v1::AttendRequest* r, const std::vector<int64_t>& q,
                const std::vector<int64_t>& k) {
  Fill(r->mutable_low_rank()->mutable_phi_q(), v1::DTYPE_FLOAT32, q);
  Fill(r->mutable_low_rank()->mutable_phi_k(), v1::DTYPE_FLOAT32, k);
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kBig = int64_t{1} << 62;

const Refusal kTensorRefusals[] = {
    {"NoQ", [](auto* r) { r->clear_q(); }, {"q is missing", "[total_q, num_q_heads, head_dim]"}},
    {"NoK", [](auto* r) { r->clear_k(); }, {"k is missing", "[total_kv, num_kv_heads, head_dim]"}},
    {"NoV", [](auto* r) { r->clear_v(); }, {"v is missing"}},
    {"NoDType",
     [](auto* r) { r->mutable_q()->set_dtype(v1::DTYPE_UNSPECIFIED); },
     {"q.dtype is unspecified", "float16, float32"}},
    {"UnknownDType",
     [](auto* r) { r->mutable_k()->set_dtype(static_cast<v1::DType>(9)); },
     {"k.dtype is 9", "float16, float32"}},
    {"UnservedDType",
     [](auto* r) {
       Fill(r->mutable_q(), v1::DTYPE_BFLOAT16, {6, 4, 16});
     },
     {"q.dtype is bfloat16", "float16, float32"}},
    {"MixedDTypes",
     [](auto* r) {
       Fill(r->mutable_v(), v1::DTYPE_FLOAT16, {8, 2, 16});
     },
     {"v.dtype is float16", "that of q, float32"}},
    {"TooFewExtents",
     [](auto* r) {
       SetShape(r->mutable_q(), {6, 64});
     },
     {"q.shape has 2 extents", "[total_q, num_q_heads, head_dim]"}},
    {"TooManyExtents",
     [](auto* r) {
       SetShape(r->mutable_k(), {1, 8, 2, 16});
     },
     {"k.shape has 4 extents"}},
    {"NegativeExtent",
     [](auto* r) {
       SetShape(r->mutable_q(), {-6, 4, 16});
     },
     {"q.shape is [-6, 4, 16]", "accepted: extents of 0 or more"}},
    {"TwoNegativeExtents",
     [](auto* r) {
       SetShape(r->mutable_q(), {-6, -4, 16});
     },
     {"q.shape is [-6, -4, 16]", "accepted: extents of 0 or more"}},
    {"ProductOverflows",
     [](auto* r) {
       SetShape(r->mutable_k(), {kBig, kBig, 16});
     },
     {"k.shape is [4611686018427387904, 4611686018427387904, 16]", "2^62"}},
    {"ProductWrapsToTheRightSize",
     [](auto* r) {
       SetShape(r->mutable_k(), {kBig + 16, 4, 4});
     },
     {"k.shape", "2^62"}},
    {"TooFewBytes",
     [](auto* r) { r->mutable_v()->mutable_data()->pop_back(); },
     {"v.data has 1023 bytes; accepted: 1024", "[8, 2, 16] of float32"}},
    {"TooManyBytes",
     [](auto* r) { r->mutable_q()->mutable_data()->push_back('x'); },
     {"q.data has 1537 bytes; accepted: 1536"}},
    {"ZeroHeads",
     [](auto* r) {
       Fill(r->mutable_q(), v1::DTYPE_FLOAT32, {6, 0, 16});
     },
     {"num_q_heads is 0", "1 to 65536"}},
    {"TooManyHeads",
     [](auto* r) {
       Fill(r->mutable_q(), v1::DTYPE_FLOAT32, {0, 65537, 16});
     },
     {"num_q_heads is 65537", "1 to 65536"}},
    {"ZeroHeadDim",
     [](auto* r) {
       Fill(r->mutable_q(), v1::DTYPE_FLOAT32, {6, 4, 0});
     },
     {"head_dim is 0", "1 to 128"}},
    {"LargeHeadDim",
     [](auto* r) {
       Fill(r->mutable_q(), v1::DTYPE_FLOAT32, {6, 4, 129});
     },
     {"q.shape is [6, 4, 129]", "head_dim is 129", "1 to 128"}},
    {"OtherHeadDimInK",
     [](auto* r) {
       Fill(r->mutable_k(), v1::DTYPE_FLOAT32, {8, 2, 17});
     },
     {"k.shape is [8, 2, 17]", "head_dim is 17", "that of q, 16"}},
    {"ZeroKvHeads",
     [](auto* r) {
       Fill(r->mutable_k(), v1::DTYPE_FLOAT32, {8, 0, 16});
     },
     {"num_kv_heads is 0", "divisor of num_q_heads 4"}},
    {"HeadsDoNotDivide",
     [](auto* r) {
       Fill(r->mutable_k(), v1::DTYPE_FLOAT32, {8, 3, 16});
     },
     {"k.shape is [8, 3, 16]: num_kv_heads is 3; accepted: a positive divisor of num_q_heads 4"}},
    {"VUnlikeK",
     [](auto* r) {
       Fill(r->mutable_v(), v1::DTYPE_FLOAT32, {9, 2, 16});
     },
     {"v.shape is [9, 2, 16]", "that of k, [8, 2, 16]"}},
};

const Refusal kScalarRefusals[] = {
    {"NoMask", [](auto* r) { r->clear_mask(); }, {"mask is unspecified", "MASK_CAUSAL, MASK_FULL"}},
    {"UnknownMask",
     [](auto* r) { r->set_mask(static_cast<v1::Mask>(7)); },
     {"mask is 7", "MASK_CAUSAL, MASK_FULL"}},
    {"NegativeWindow", [](auto* r) { r->set_left_window(-1); }, {"left_window is -1"}},
    {"ScaleNan", [](auto* r) { r->set_softmax_scale(kNan); }, {"softmax_scale is nan", "finite"}},
    {"ScaleInf", [](auto* r) { r->set_softmax_scale(-kInf); }, {"softmax_scale is -inf"}},
    {"EpsNegative", [](auto* r) { r->set_eps(-0.25f); }, {"eps is -0.25", "0 to 2^-8"}},
    {"EpsNan", [](auto* r) { r->set_eps(kNan); }, {"eps is nan", "0 to 2^-8"}},
    {"EpsLarge", [](auto* r) { r->set_eps(0.004f); }, {"eps is 0.004", "0 to 2^-8"}},
};

const Refusal kSequenceRefusals[] = {
    {"OnlyQLens",
     [](auto* r) { r->add_q_lens(6); },
     {"kv_lens has 0 entries and q_lens has 1", "as many in both"}},
    {"OnlyKvLens", [](auto* r) { r->add_kv_lens(8); }, {"kv_lens has 1 entries and q_lens has 0"}},
    {"CountMismatch",
     [](auto* r) {
       r->add_q_lens(6);
       r->add_kv_lens(4);
       r->add_kv_lens(4);
     },
     {"kv_lens has 2 entries and q_lens has 1"}},
    {"NegativeLength",
     [](auto* r) {
       for (const int64_t n : {7, -1}) r->add_q_lens(n);
       for (const int64_t n : {4, 4}) r->add_kv_lens(n);
     },
     {"q_lens[1] is -1; accepted: 0 or more"}},
    {"SumOfQLens",
     [](auto* r) {
       r->add_q_lens(5);
       r->add_kv_lens(8);
     },
     {"q_lens sums to 5", "total_q 6"}},
    {"SumOfKvLens",
     [](auto* r) {
       r->add_q_lens(6);
       r->add_kv_lens(9);
     },
     {"kv_lens sums to 9", "total_kv 8"}},
    {"SumOverflows",
     [](auto* r) {
       for (int n = 0; n < 4; ++n) r->add_q_lens(kBig);
       for (int n = 0; n < 4; ++n) r->add_kv_lens(2);
     },
     {"q_lens sums to more than 2^63", "total_q 6"}},
    {"TooManySequences",
     [](auto* r) {
       for (int n = 0; n < 65537; ++n) {
         r->add_q_lens(0);
         r->add_kv_lens(0);
       }
     },
     {"q_lens has 65537 entries", "at most 65536 sequences"}},
    {"QueryStartCount",
     [](auto* r) {
       r->add_query_start(0);
       r->add_query_start(0);
     },
     {"query_start has 2 entries", "each of the 1 sequences"}},
    {"QueryStartFar",
     [](auto* r) { r->add_query_start((int64_t{1} << 48) + 1); },
     {"query_start[0] is 281474976710657", "-2^48 to 2^48"}},
    {"KeyStartCount",
     [](auto* r) {
       r->add_key_start(0);
       r->add_key_start(0);
     },
     {"key_start has 2 entries"}},
    {"KeyStartFar",
     [](auto* r) { r->add_key_start(std::numeric_limits<int64_t>::min()); },
     {"key_start[0] is -9223372036854775808", "-2^48 to 2^48"}},
};

const Refusal kBiasRefusals[] = {
    {"NoSlopes",
     [](auto* r) { r->mutable_alibi(); },
     {"alibi.slopes is missing", "[num_q_heads] or [num_sequences, num_q_heads]"}},
    {"SlopesDType",
     [](auto* r) { Fill(r->mutable_alibi()->mutable_slopes(), v1::DTYPE_FLOAT16, {4}); },
     {"alibi.slopes.dtype is float16", "accepted: float32"}},
    {"SlopesCount",
     [](auto* r) {
       FillFloats(r->mutable_alibi()->mutable_slopes(), {3}, {1, 2, 3});
     },
     {"alibi.slopes.shape is [3]", "[4] or [1, 4]"}},
    {"SlopesPerSequenceCount",
     [](auto* r) {
       FillFloats(r->mutable_alibi()->mutable_slopes(), {2, 4}, std::vector<float>(8));
     },
     {"alibi.slopes.shape is [2, 4]", "[4] or [1, 4]"}},
    {"SlopesExtents",
     [](auto* r) {
       FillFloats(r->mutable_alibi()->mutable_slopes(), {1, 1, 4}, std::vector<float>(4));
     },
     {"alibi.slopes.shape has 3 extents"}},
    {"SlopesScalar",
     [](auto* r) { FillFloats(r->mutable_alibi()->mutable_slopes(), {}, {1}); },
     {"alibi.slopes.shape has 0 extents"}},
    {"SlopesNan",
     [](auto* r) {
       FillFloats(r->mutable_alibi()->mutable_slopes(), {4}, {1, 2, kNan, 4});
     },
     {"alibi.slopes.data[2] is nan", "finite"}},
    {"SlopesInf",
     [](auto* r) {
       FillFloats(r->mutable_alibi()->mutable_slopes(), {4}, {1, kInf, 3, 4});
     },
     {"alibi.slopes.data[1] is inf", "finite"}},
    {"NoPhiQ",
     [](auto* r) {
       SetFactors(r, {6, 4, 2}, {8, 4, 2});
       r->mutable_low_rank()->clear_phi_q();
     },
     {"low_rank.phi_q is missing", "[total_q, num_q_heads or 1, R]"}},
    {"NoPhiK",
     [](auto* r) {
       SetFactors(r, {6, 4, 2}, {8, 4, 2});
       r->mutable_low_rank()->clear_phi_k();
     },
     {"low_rank.phi_k is missing"}},
    {"FactorDTypes",
     [](auto* r) {
       SetFactors(r, {6, 4, 2}, {8, 4, 2});
       Fill(r->mutable_low_rank()->mutable_phi_k(), v1::DTYPE_FLOAT16, {8, 4, 2});
     },
     {"low_rank.phi_k.dtype is float16", "that of phi_q, float32"}},
    {"RankZero",
     [](auto* r) {
       SetFactors(r, {6, 4, 0}, {8, 4, 0});
     },
     {"low_rank.phi_q.shape is [6, 4, 0]", "rank is 0", "1 to 64"}},
    {"RankLarge",
     [](auto* r) {
       SetFactors(r, {6, 4, 65}, {8, 4, 65});
     },
     {"rank is 65", "1 to 64"}},
    {"RanksDiffer",
     [](auto* r) {
       SetFactors(r, {6, 4, 2}, {8, 4, 3});
     },
     {"low_rank.phi_k.shape is [8, 4, 3]", "rank is 3", "that of phi_q, 2"}},
    {"FactorRowsOfQ",
     [](auto* r) {
       SetFactors(r, {8, 4, 2}, {8, 4, 2});
     },
     {"low_rank.phi_q.shape is [8, 4, 2]", "[6, 4 or 1, 2]"}},
    {"FactorRowsOfK",
     [](auto* r) {
       SetFactors(r, {6, 4, 2}, {6, 4, 2});
     },
     {"low_rank.phi_k.shape is [6, 4, 2]", "[8, 4 or 1, 2]"}},
    {"FactorHeads",
     [](auto* r) {
       SetFactors(r, {6, 4, 2}, {8, 2, 2});
     },
     {"low_rank.phi_k.shape is [8, 2, 2]", "[8, 4 or 1, 2]"}},
    {"FactorExtents",
     [](auto* r) {
       SetFactors(r, {6, 2}, {8, 2});
     },
     {"low_rank.phi_q.shape has 2 extents"}},
};

std::string NameOf(const testing::TestParamInfo<Refusal>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Tensors, CodecRefusalTest, testing::ValuesIn(kTensorRefusals), NameOf);
INSTANTIATE_TEST_SUITE_P(Scalars, CodecRefusalTest, testing::ValuesIn(kScalarRefusals), NameOf);
INSTANTIATE_TEST_SUITE_P(Sequences, CodecRefusalTest, testing::ValuesIn(kSequenceRefusals), NameOf);
INSTANTIATE_TEST_SUITE_P(Biases, CodecRefusalTest, testing::ValuesIn(kBiasRefusals), NameOf);

}  // namespace
}  // namespace flashbias::server
