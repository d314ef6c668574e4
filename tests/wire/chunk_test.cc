#include "wire/chunk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "flashbias/v1/attention.pb.h"
#include "server/attend_reader.h"
#include "wire/chunk_assembler.h"
#include "wire/chunk_cutter.h"
#include "wire/contract.h"
#include "wire/gather.h"

namespace flashbias::wire {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// `bytes` cut at random places, empty slices among them.
std::vector<grpc::Slice> Sliced(const std::string& bytes, std::mt19937* random) {
  std::vector<grpc::Slice> slices;
  size_t at = 0;
  while (at < bytes.size()) {
    const size_t size = std::min<size_t>((*random)() % 7, bytes.size() - at);
    slices.emplace_back(bytes.substr(at, size));
    at += size;
  }
  return slices;
}

std::string Text(absl::Span<const grpc::Slice> slices, ByteRange range) {
  std::string text;
  AppendTo(slices, range, &text);
  return text;
}

TEST(ChunkTest, WhatIsWrittenIsWhatTheGeneratedClassWrites) {
  for (const int64_t offset : {int64_t{0}, int64_t{1}, int64_t{3} << 31, int64_t{1} << 61}) {
    v1::AttendStreamRequest want;
    want.mutable_chunk()->set_tensor(v1::STREAM_TENSOR_PHI_K);
    want.mutable_chunk()->set_offset(offset);
    want.mutable_chunk()->set_data(std::string(300, 'x'));
    EXPECT_EQ(EncodeChunkHead(kStreamPhiK, offset, 300) + std::string(300, 'x'),
              want.SerializeAsString());
  }
  EXPECT_LE(static_cast<int64_t>(
                EncodeChunkHead(7, std::numeric_limits<int64_t>::max(), kMaxChunkBytes).size()),
            kChunkOverheadBytes);
}

v1::AttendStreamRequest ChunkMessage() {
  v1::AttendStreamRequest message;
  message.mutable_chunk()->set_tensor(v1::STREAM_TENSOR_K);
  message.mutable_chunk()->set_offset(12345678901);
  message.mutable_chunk()->set_data("some bytes");
  return message;
}

v1::AttendStreamRequest HeaderMessage() {
  v1::AttendStreamRequest message;
  message.set_max_chunk_bytes(4096);
  v1::AttendRequest* const header = message.mutable_header();
  header->set_mask(v1::MASK_FULL);
  header->add_query_start(-7);
  header->mutable_alibi()->mutable_slopes()->set_data("abcdefgh");
  header->mutable_q()->set_dtype(v1::DTYPE_FLOAT16);
  header->mutable_q()->add_shape(int64_t{1} << 40);
  return message;
}

v1::AttendBackwardStreamRequest BackwardHeaderMessage() {
  v1::AttendBackwardStreamRequest message;
  message.set_max_chunk_bytes(4096);
  *message.mutable_header()->mutable_forward() = HeaderMessage().header();
  message.mutable_header()->mutable_d_o()->add_shape(3);
  return message;
}

const v1::AttendRequest& ForwardOf(const v1::AttendRequest& request) { return request; }
const v1::AttendRequest& ForwardOf(const v1::AttendBackwardRequest& request) {
  return request.forward();
}

// Ours reads what the generated class reads.
template <typename Message>
void ExpectSame(const std::string& bytes, std::mt19937* random) {
  constexpr bool kBackward = std::is_same_v<Message, v1::AttendBackwardStreamRequest>;
  Message want;
  const bool want_ok = want.ParseFromString(bytes);
  const std::vector<grpc::Slice> slices = Sliced(bytes, random);
  const absl::StatusOr<server::StreamMessage> got = server::ReadAttendStreamRequest(
      kBackward ? Direction::kBackward : Direction::kForward, slices);
  ASSERT_EQ(got.ok(), want_ok) << got.status();
  if (!want_ok) return;
  EXPECT_EQ(got->max_chunk_bytes, want.max_chunk_bytes());
  ASSERT_EQ(got->header.has_value(), want.has_header());
  ASSERT_EQ(got->chunk.has_value(), want.has_chunk());
  if (want.has_chunk()) {
    EXPECT_EQ(got->chunk->tensor, static_cast<int>(want.chunk().tensor()));
    EXPECT_EQ(got->chunk->offset, want.chunk().offset());
    EXPECT_EQ(Text(slices, got->chunk->data), want.chunk().data());
  }
  if (want.has_header()) {
    EXPECT_TRUE(got->header->data_follows);
    const v1::AttendRequest& forward = ForwardOf(want.header());
    EXPECT_EQ(got->header->mask, static_cast<int>(forward.mask()));
    EXPECT_EQ(got->header->q.present, forward.has_q());
    EXPECT_THAT(got->header->q.shape, testing::ElementsAreArray(forward.q().shape()));
    EXPECT_EQ(Text(slices, got->header->slopes.data), forward.alibi().slopes().data());
    ASSERT_EQ(got->header->backward.has_value(), kBackward);
    if constexpr (kBackward) {
      EXPECT_THAT(got->header->backward->d_o.shape,
                  testing::ElementsAreArray(want.header().d_o().shape()));
    }
  }
}

// Whole, truncated and mutated. The last member of a oneof stays, the same one merges.
template <typename Message>
void ExpectSameMessages(const std::string& chunk, const std::string& header) {
  std::mt19937 random(1);
  for (const std::string& bytes : {chunk, header, std::string(), chunk + header, header + chunk,
                                   chunk + chunk, header + header, chunk + header + chunk}) {
    for (size_t size = 0; size <= bytes.size(); ++size) {
      ExpectSame<Message>(bytes.substr(0, size), &random);
    }
    for (int n = 0; n < 2000; ++n) {
      std::string mutated = bytes;
      for (size_t k = 0; !bytes.empty() && k < 1 + random() % 3; ++k) {
        mutated[random() % mutated.size()] = static_cast<char>(random());
      }
      ExpectSame<Message>(mutated, &random);
    }
  }
}

TEST(ChunkTest, MessagesAreReadAsTheGeneratedClassReadsThem) {
  const std::string chunk = ChunkMessage().SerializeAsString();
  ExpectSameMessages<v1::AttendStreamRequest>(chunk, HeaderMessage().SerializeAsString());
  ExpectSameMessages<v1::AttendBackwardStreamRequest>(chunk,
                                                      BackwardHeaderMessage().SerializeAsString());
}

TEST(ChunkCutterTest, CutsEveryByteOnceInOrder) {
  const std::string a(10, 'a');
  const std::string b(3, 'b');
  ChunkCutter cutter({{.number = 1, .data = a.data(), .bytes = 10},
                      {.number = 2, .data = nullptr, .bytes = 0},
                      {.number = 3, .data = b.data(), .bytes = 3}},
                     4);
  std::vector<std::tuple<int, int64_t, std::string>> pieces;
  while (const auto piece = cutter.Next()) {
    pieces.emplace_back(piece->tensor, piece->offset, std::string(piece->data, piece->bytes));
  }
  EXPECT_THAT(pieces, testing::ElementsAre(std::tuple(1, 0, "aaaa"), std::tuple(1, 4, "aaaa"),
                                           std::tuple(1, 8, "aa"), std::tuple(3, 0, "bbb")));
}

class ChunkAssemblerTest : public testing::Test {
 protected:
  absl::Status Add(int tensor, int64_t offset, const std::string& data) {
    std::mt19937 random(3);
    return assembler_.Add({.tensor = tensor, .offset = offset, .data = {.size = data.size()}},
                          Sliced(data, &random), nullptr);
  }
  std::string Refusal(int tensor, int64_t offset, const std::string& data) {
    const std::string q = q_;
    const std::string k = k_;
    const absl::Status status = Add(tensor, offset, data);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(q_, q);
    EXPECT_EQ(k_, k);
    return std::string(status.message());
  }

  std::string q_ = std::string(20, '.');
  std::string k_ = std::string(8, '.');
  ChunkAssembler assembler_{{{.number = kStreamQ, .name = "q", .to = q_.data(), .bytes = q_.size()},
                             {.number = kStreamK, .name = "k", .to = k_.data(), .bytes = k_.size()},
                             {.number = kStreamV, .name = "v", .to = nullptr, .bytes = 0}}};
};

TEST_F(ChunkAssemblerTest, TensorsMayAlternate) {
  EXPECT_TRUE(Add(kStreamQ, 0, "0123456789").ok());
  EXPECT_TRUE(Add(kStreamK, 0, "abcde").ok());
  EXPECT_TRUE(Add(kStreamQ, 10, "9876543210").ok());
  EXPECT_FALSE(assembler_.CheckComplete().ok());
  EXPECT_TRUE(Add(kStreamK, 5, "fgh").ok());
  EXPECT_TRUE(assembler_.CheckComplete().ok());
  EXPECT_EQ(q_, "01234567899876543210");
  EXPECT_EQ(k_, "abcdefgh");
}

TEST_F(ChunkAssemblerTest, WhatDoesNotFitIsRefusedAndNotWritten) {
  ASSERT_TRUE(Add(kStreamQ, 0, "0123").ok());
  EXPECT_THAT(Refusal(kStreamQ, 0, "0123"), HasSubstr("offset is 0; accepted: 4"));
  EXPECT_THAT(Refusal(kStreamQ, 5, "5"), HasSubstr("chunk of q: offset is 5; accepted: 4"));
  EXPECT_THAT(Refusal(kStreamQ, -4, "5"), HasSubstr("offset is -4; accepted: 4"));
  EXPECT_THAT(Refusal(kStreamQ, int64_t{1} << 62, "5"), HasSubstr("accepted: 4"));
  EXPECT_THAT(Refusal(kStreamQ, 4, ""), HasSubstr("data has 0 bytes; accepted: 1 to 4194304"));
  EXPECT_THAT(Refusal(kStreamQ, 4, std::string(17, '!')),
              AllOf(HasSubstr("chunk of q at byte 4: data has 17 bytes"),
                    HasSubstr("at most 16, what is left of the 20 bytes of q")));
  EXPECT_THAT(Refusal(kStreamQ, 4, std::string(kMaxChunkBytes + 1, '!')),
              HasSubstr("data has 4194305 bytes; accepted: 1 to 4194304"));
  EXPECT_THAT(Refusal(kStreamV, 0, "x"), HasSubstr("at most 0, what is left of the 0 bytes of v"));
  for (const int unknown : {0, kStreamPhiQ, kStreamO, -1, 99}) {
    EXPECT_THAT(Refusal(unknown, 0, "x"), HasSubstr("accepted: q, k, v"));
  }
  EXPECT_THAT(std::string(assembler_.CheckComplete().message()),
              HasSubstr("ended at byte 4 of q; accepted: all of its 20 bytes"));
}

}  // namespace
}  // namespace flashbias::wire
