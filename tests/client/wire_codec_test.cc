#include "client/wire_codec.h"

#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "wire/contract.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;
using Random = std::mt19937_64;

std::string Text(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string text;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

grpc::ByteBuffer Buffer(const std::string& text, const std::vector<size_t>& cuts) {
  std::vector<grpc::Slice> slices;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    slices.emplace_back(text.substr(begin, cut - begin));
    begin = cut;
  }
  slices.emplace_back(text.substr(begin));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::vector<size_t> RandomCuts(Random& random, size_t size) {
  std::vector<size_t> cuts(random() % 9);
  for (size_t& cut : cuts) cut = random() % (size + 1);
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

// The same request for the client and as the generated class has it, with memory of its own.
struct BothRequests {
  std::string memory;
  std::vector<float> slopes;
  AttendRequest ours;
  v1::AttendRequest generated;
  RegionPlacement placement;
  Answer answer;  // for its places

  TensorView Tensor(DType dtype, std::vector<int64_t> shape, v1::Tensor* tensor) {
    size_t bytes = SizeOf(dtype);
    for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);
    tensor->set_dtype(dtype == DType::kFloat16    ? v1::DTYPE_FLOAT16
                      : dtype == DType::kBFloat16 ? v1::DTYPE_BFLOAT16
                                                  : v1::DTYPE_FLOAT32);
    tensor->mutable_shape()->Assign(shape.begin(), shape.end());
    if (bytes > 0) tensor->set_data(memory.substr(0, bytes));
    return {.dtype = dtype, .shape = std::move(shape), .data = memory.data()};
  }

  explicit BothRequests(Random& random) : memory(1 << 20, '\0') {
    for (size_t n = 0; n < memory.size(); n += 97) memory[n] = static_cast<char>(random());
    const auto dtype = static_cast<DType>(random() % 3);
    // From nothing to tensors that are lent.
    const int64_t rows = static_cast<int64_t>(random() % 3 == 0 ? random() % 400 : random() % 5);
    const int64_t heads = 1 + static_cast<int64_t>(random() % 4);
    ours.q = Tensor(dtype, {rows, heads, 32}, generated.mutable_q());
    ours.k = Tensor(dtype, {rows + 1, heads, 32}, generated.mutable_k());
    ours.v = Tensor(dtype, {rows + 1, heads, 32}, generated.mutable_v());
    const auto list = [&](std::vector<int64_t>* own, auto* wire) {
      own->resize(random() % 4);
      for (int64_t& value : *own) value = static_cast<int64_t>(random() >> (random() % 64));
      wire->Assign(own->begin(), own->end());
    };
    list(&ours.q_lens, generated.mutable_q_lens());
    list(&ours.kv_lens, generated.mutable_kv_lens());
    list(&ours.query_start, generated.mutable_query_start());
    list(&ours.key_start, generated.mutable_key_start());
    ours.mask = random() % 2 == 0 ? MaskKind::kCausal : MaskKind::kFull;
    generated.set_mask(ours.mask == MaskKind::kCausal ? v1::MASK_CAUSAL : v1::MASK_FULL);
    if (random() % 2 == 0) generated.set_left_window(ours.left_window = 300);
    if (random() % 2 == 0) generated.set_softmax_scale(*(ours.softmax_scale = -0.5f));
    if (random() % 2 == 0) generated.set_eps(*(ours.eps = 0.0f));
    generated.set_want_lse(ours.want_lse = random() % 2 == 0);
    switch (random() % 4) {
      case 0: {
        slopes.assign(static_cast<size_t>(heads) * (1 + random() % 2), 0.25f);
        ours.bias = AlibiSlopes{.slopes = slopes};
        v1::Tensor* const wire = generated.mutable_alibi()->mutable_slopes();
        wire->set_dtype(v1::DTYPE_FLOAT32);
        const auto count = static_cast<int64_t>(slopes.size());
        if (count != heads) wire->add_shape(count / heads);
        wire->add_shape(heads);
        wire->set_data(slopes.data(), slopes.size() * sizeof(float));
        break;
      }
      case 1: {
        v1::LowRankBias* const wire = generated.mutable_low_rank();
        LowRankFactors factors;
        factors.phi_q = Tensor(DType::kFloat32, {rows, 1, 7}, wire->mutable_phi_q());
        factors.phi_k = Tensor(DType::kFloat32, {rows + 1, heads, 7}, wire->mutable_phi_k());
        ours.bias = factors;
        break;
      }
      default:
        break;
    }
    Place(random, generated.mutable_q(), &placement.q);
    Place(random, generated.mutable_k(), &placement.k);
    Place(random, generated.mutable_v(), &placement.v);
    if (generated.has_low_rank()) {
      Place(random, generated.mutable_low_rank()->mutable_phi_q(), &placement.phi_q);
      Place(random, generated.mutable_low_rank()->mutable_phi_k(), &placement.phi_k);
    }
    AnswerPlace(random, wire::RequestNumber::kOPlace, [&] { return generated.mutable_o_place(); });
    AnswerPlace(random, wire::RequestNumber::kLsePlace,
                [&] { return generated.mutable_lse_place(); });
  }

  // Sometimes gives the answer a tensor with a place.
  template <typename Mutable>
  void AnswerPlace(Random& random, int number, const Mutable& place) {
    if (random() % 4 != 0) return;
    const wire::RegionPlace chosen = {.region_id = random(),
                                      .offset = random() % 3 << (random() % 60)};
    answer.tensors.push_back({.place_number = number, .place = chosen});
    place()->set_region_id(chosen.region_id);
    place()->set_offset(chosen.offset);
  }

  static void Place(Random& random, v1::Tensor* tensor, std::optional<wire::RegionPlace>* place) {
    if (random() % 4 != 0) return;
    *place = {.region_id = random(), .offset = random() % 3 << (random() % 60)};
    tensor->clear_data();
    tensor->set_region_id((*place)->region_id);
    tensor->set_region_offset((*place)->offset);
  }
};

TEST(WireCodecTest, RequestsAreByteForByteWhatTheGeneratedClassWrites) {
  Random random(1);
  size_t lent = 0;
  for (int n = 0; n < 300; ++n) {
    const BothRequests both(random);
    const auto loans = std::make_shared<TensorLoans>();
    {
      const grpc::ByteBuffer with_loans =
          EncodeRequest(both.ours, both.placement, both.answer, *loans);
      lent += loans->AllReturned() ? 0 : 1;
      const std::string text = Text(with_loans);
      ASSERT_EQ(with_loans.Length(), text.size());
      ASSERT_TRUE(text == both.generated.SerializeAsString());
      v1::AttendRequest parsed;
      ASSERT_TRUE(parsed.ParseFromString(text));
      ASSERT_TRUE(google::protobuf::util::MessageDifferencer::Equals(parsed, both.generated));
    }
    EXPECT_TRUE(loans->AllReturned());
  }
  EXPECT_GT(lent, 20u);
}

// The backward call of a BothRequests.
struct BothBackwardRequests : BothRequests {
  AttendBackwardRequest backward;
  v1::AttendBackwardRequest generated_backward;

  explicit BothBackwardRequests(Random& random) : BothRequests(random) {
    answer.tensors.clear();
    generated.clear_o_place();
    generated.clear_lse_place();
    generated.set_want_lse(false);  // that of ours is not looked at
    *generated_backward.mutable_forward() = generated;
    backward.forward = ours;
    const std::vector<int64_t>& shape = ours.q.shape;
    backward.o = Tensor(ours.q.dtype, shape, generated_backward.mutable_o());
    backward.d_o = Tensor(ours.q.dtype, shape, generated_backward.mutable_d_o());
    backward.lse = {reinterpret_cast<const float*>(memory.data()),
                    static_cast<size_t>(shape[0] * shape[1])};
    Tensor(DType::kFloat32, {shape[0], shape[1]}, generated_backward.mutable_lse());
    generated_backward.set_want_bias_gradient(backward.want_bias_gradient = random() % 2 == 0);
    Place(random, generated_backward.mutable_o(), &placement.o);
    Place(random, generated_backward.mutable_d_o(), &placement.d_o);
    Place(random, generated_backward.mutable_lse(), &placement.lse);
    using Number = wire::BackwardRequestNumber;
    v1::AttendBackwardRequest& g = generated_backward;
    AnswerPlace(random, Number::kDQPlace, [&] { return g.mutable_dq_place(); });
    AnswerPlace(random, Number::kDKPlace, [&] { return g.mutable_dk_place(); });
    AnswerPlace(random, Number::kDVPlace, [&] { return g.mutable_dv_place(); });
    AnswerPlace(random, Number::kDPhiQPlace, [&] { return g.mutable_dphi_q_place(); });
    AnswerPlace(random, Number::kDPhiKPlace, [&] { return g.mutable_dphi_k_place(); });
  }
};

TEST(WireCodecTest, BackwardRequestsToo) {
  Random random(3);
  size_t lent = 0;
  for (int n = 0; n < 300; ++n) {
    const BothBackwardRequests both(random);
    const auto loans = std::make_shared<TensorLoans>();
    {
      const grpc::ByteBuffer with_loans =
          EncodeRequest(both.backward, both.placement, both.answer, *loans);
      lent += loans->AllReturned() ? 0 : 1;
      const std::string text = Text(with_loans);
      ASSERT_EQ(with_loans.Length(), text.size());
      ASSERT_TRUE(text == both.generated_backward.SerializeAsString());
    }
    EXPECT_TRUE(loans->AllReturned());
  }
  EXPECT_GT(lent, 20u);
}

TEST(WireCodecTest, HeadersOfStreamsHaveNoElementsButSlopes) {
  Random random(4);
  for (int n = 0; n < 100; ++n) {
    const BothBackwardRequests both(random);
    const auto loans = std::make_shared<TensorLoans>();
    v1::AttendBackwardRequest want = both.generated_backward;
    for (v1::Tensor* tensor :
         {want.mutable_forward()->mutable_q(), want.mutable_forward()->mutable_k(),
          want.mutable_forward()->mutable_v(), want.mutable_lse(), want.mutable_o(),
          want.mutable_d_o()}) {
      tensor->clear_data();
      tensor->clear_region_id();
      tensor->clear_region_offset();
    }
    if (want.forward().has_low_rank()) {
      v1::LowRankBias* const bias = want.mutable_forward()->mutable_low_rank();
      for (v1::Tensor* tensor : {bias->mutable_phi_q(), bias->mutable_phi_k()}) {
        tensor->clear_data();
        tensor->clear_region_id();
        tensor->clear_region_offset();
      }
    }
    want.clear_dq_place();
    want.clear_dk_place();
    want.clear_dv_place();
    want.clear_dphi_q_place();
    want.clear_dphi_k_place();
    v1::AttendBackwardStreamRequest backward;
    ASSERT_TRUE(backward.ParseFromString(Text(EncodeStreamHeader(both.backward, 77, *loans))));
    EXPECT_EQ(backward.max_chunk_bytes(), 77);
    EXPECT_EQ(backward.header().SerializeAsString(), want.SerializeAsString());
    v1::AttendStreamRequest forward;
    ASSERT_TRUE(forward.ParseFromString(Text(EncodeStreamHeader(both.ours, 77, *loans))));
    want.mutable_forward()->set_want_lse(both.ours.want_lse);
    EXPECT_EQ(forward.header().SerializeAsString(), want.forward().SerializeAsString());
  }
}

TEST(WireCodecTest, LoansLastAsLongAsTheirSlices) {
  const auto loans = std::make_shared<TensorLoans>();
  const std::string memory(100, 'x');
  grpc::Slice slice = loans->Lend(memory.data(), memory.size());
  EXPECT_EQ(slice.begin(), reinterpret_cast<const uint8_t*>(memory.data())) << "no copy";
  auto second = std::make_unique<grpc::Slice>(slice);
  slice = grpc::Slice();
  EXPECT_FALSE(loans->AllReturned());
  second.reset();
  EXPECT_TRUE(loans->AllReturned());
}

// What a request with [3, 2, 4] of float32 and want_lse expects.
Answer Expected(const ResultBuffers& buffers = {}) {
  AttendRequest request{.want_lse = true};
  request.q = {.dtype = DType::kFloat32, .shape = {3, 2, 4}};
  absl::StatusOr<Answer> answer = ExpectAnswer(request, buffers);
  EXPECT_TRUE(answer.ok()) << answer.status();
  return *std::move(answer);
}

absl::StatusOr<AttendResult> DecodeResult(Answer answer, grpc::ByteBuffer* message) {
  const absl::Status status = DecodeAnswer("AttendResponse", message, &answer);
  if (!status.ok()) return status;
  return TakeResult(std::move(answer));
}

v1::AttendResponse GoodResponse() {
  v1::AttendResponse response;
  v1::Tensor* const o = response.mutable_o();
  o->set_dtype(v1::DTYPE_FLOAT32);
  for (const int64_t extent : {3, 2, 4}) o->add_shape(extent);
  for (int n = 0; n < 96; ++n) o->mutable_data()->push_back(static_cast<char>(n));
  v1::Tensor* const lse = response.mutable_lse();
  lse->set_dtype(v1::DTYPE_FLOAT32);
  for (const int64_t extent : {3, 2}) lse->add_shape(extent);
  const std::vector<float> values = {0, 1, 2, 3, 4, 5};
  lse->set_data(values.data(), 24);
  response.mutable_timing()->set_receive_seconds(1);
  response.mutable_timing()->set_queue_seconds(2);
  response.mutable_timing()->set_compute_seconds(3);
  response.mutable_timing()->set_send_seconds(4);
  response.mutable_timing()->set_batch_requests(5);
  response.mutable_timing()->set_tiles_computed(6);
  response.mutable_timing()->set_tiles_skipped(7);
  return response;
}

TEST(WireCodecTest, AnswersAreReadInAnyOrderAndAnySlices) {
  const v1::AttendResponse response = GoodResponse();
  std::vector<std::string> parts(3);
  v1::AttendResponse one;
  *one.mutable_o() = response.o();
  parts[0] = one.SerializeAsString();
  one.Clear();
  *one.mutable_lse() = response.lse();
  parts[1] = one.SerializeAsString();
  one.Clear();
  *one.mutable_timing() = response.timing();
  parts[2] = one.SerializeAsString();
  Random random(2);
  for (int n = 0; n < 400; ++n) {
    std::shuffle(parts.begin(), parts.end(), random);
    // An unknown field in front: 100, a varint.
    const std::string text = "\xa0\x06\x01" + parts[0] + parts[1] + parts[2];
    grpc::ByteBuffer buffer = Buffer(text, RandomCuts(random, text.size()));
    std::string o(96, '?');
    std::vector<float> lse(6, -1);
    const bool own = n % 2 == 0;
    ResultBuffers buffers;
    if (!own) buffers = {.o = absl::MakeSpan(o), .lse = absl::MakeSpan(lse)};
    const auto result = DecodeResult(Expected(buffers), &buffer);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->shape, (std::vector<int64_t>{3, 2, 4}));
    EXPECT_EQ(own ? result->o : o, response.o().data());
    EXPECT_EQ(own ? result->lse : lse, (std::vector<float>{0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(result->o.empty(), !own);
    EXPECT_EQ(result->lse.empty(), !own);
    EXPECT_EQ(result->timing.receive, absl::Seconds(1));
    EXPECT_EQ(result->timing.queue, absl::Seconds(2));
    EXPECT_EQ(result->timing.compute, absl::Seconds(3));
    EXPECT_EQ(result->timing.send, absl::Seconds(4));
    EXPECT_EQ(result->timing.batch_requests, 5);
    EXPECT_EQ(result->timing.tiles_computed, 6);
    EXPECT_EQ(result->timing.tiles_skipped, 7);
  }
}

TEST(WireCodecTest, TruncatedAnswersAreInternalAndLeaveTheBuffersAlone) {
  const std::string text = GoodResponse().SerializeAsString();
  for (size_t size = 0; size < text.size(); ++size) {
    grpc::ByteBuffer buffer = Buffer(text.substr(0, size), {});
    std::string o(96, '?');
    std::vector<float> lse(6, -1);
    const ResultBuffers buffers = {.o = absl::MakeSpan(o), .lse = absl::MakeSpan(lse)};
    EXPECT_EQ(DecodeResult(Expected(buffers), &buffer).status().code(),
              absl::StatusCode::kInternal);
    EXPECT_EQ(o, std::string(96, '?'));
    EXPECT_EQ(lse, std::vector<float>(6, -1));
  }
}

}  // namespace
}  // namespace flashbias::client
