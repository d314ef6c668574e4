#include "server/attend_reader.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "flashbias/v1/attention.pb.h"
#include "tests/wire/attend_differential.h"

namespace flashbias::server {
namespace {

using testing::HasSubstr;

using Random = std::mt19937_64;

void FillTensor(Random& random, v1::Tensor* tensor) {
  if (random() % 8 != 0) tensor->set_dtype(static_cast<v1::DType>(random() % 5));
  for (size_t n = random() % 4; n > 0; --n) {
    tensor->add_shape(static_cast<int64_t>(random() >> (random() % 64)));
  }
  std::string data(random() % 40, '\0');
  for (char& byte : data) byte = static_cast<char>(random());
  if (random() % 8 != 0) tensor->set_data(data);
  if (random() % 4 == 0) tensor->set_region_id(random());
  if (random() % 4 == 0) tensor->set_region_offset(random() >> (random() % 64));
}

void FillPlace(Random& random, v1::RegionPlace* place) {
  if (random() % 4 != 0) place->set_region_id(random());
  if (random() % 4 != 0) place->set_offset(random() >> (random() % 64));
}

v1::AttendRequest RandomRequest(Random& random) {
  v1::AttendRequest request;
  const auto fill = [&](auto* list) {
    for (size_t n = random() % 5; n > 0; --n) {
      list->Add(static_cast<int64_t>(random() >> (random() % 64)) * (random() % 2 == 0 ? 1 : -1));
    }
  };
  fill(request.mutable_q_lens());
  fill(request.mutable_kv_lens());
  fill(request.mutable_query_start());
  fill(request.mutable_key_start());
  request.set_mask(static_cast<v1::Mask>(static_cast<int>(random() % 5) - 1));
  if (random() % 2 == 0) request.set_left_window(static_cast<int64_t>(random()));
  if (random() % 2 == 0) request.set_softmax_scale(static_cast<float>(random() % 100) - 50);
  if (random() % 2 == 0) request.set_eps(0);
  request.set_want_lse(random() % 2 == 0);
  if (random() % 3 == 0) FillTensor(random, request.mutable_alibi()->mutable_slopes());
  if (random() % 3 == 0) FillTensor(random, request.mutable_low_rank()->mutable_phi_q());
  if (random() % 3 == 0) FillTensor(random, request.mutable_low_rank()->mutable_phi_k());
  if (random() % 8 != 0) FillTensor(random, request.mutable_q());
  if (random() % 8 != 0) FillTensor(random, request.mutable_k());
  if (random() % 8 != 0) FillTensor(random, request.mutable_v());
  if (random() % 3 == 0) FillPlace(random, request.mutable_o_place());
  if (random() % 3 == 0) FillPlace(random, request.mutable_lse_place());
  return request;
}

v1::AttendBackwardRequest RandomBackwardRequest(Random& random) {
  v1::AttendBackwardRequest request;
  if (random() % 8 != 0) *request.mutable_forward() = RandomRequest(random);
  request.set_want_bias_gradient(random() % 2 == 0);
  if (random() % 8 != 0) FillTensor(random, request.mutable_lse());
  if (random() % 8 != 0) FillTensor(random, request.mutable_o());
  if (random() % 8 != 0) FillTensor(random, request.mutable_d_o());
  if (random() % 3 == 0) FillPlace(random, request.mutable_dq_place());
  if (random() % 3 == 0) FillPlace(random, request.mutable_dk_place());
  if (random() % 3 == 0) FillPlace(random, request.mutable_dv_place());
  if (random() % 3 == 0) FillPlace(random, request.mutable_dphi_q_place());
  if (random() % 3 == 0) FillPlace(random, request.mutable_dphi_k_place());
  return request;
}

// Each field of a message by itself, serialised.
template <typename Message>
std::vector<std::string> Parts(const Message& message) {
  std::vector<std::string> parts;
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const auto* field : fields) {
    Message one = message;
    for (const auto* other : fields) {
      if (other != field) one.GetReflection()->ClearField(&one, other);
    }
    parts.push_back(one.SerializeAsString());
  }
  return parts;
}

// The fields of some requests in any order; fields come twice, and a backward request's forward one
// in parts.
std::string Shuffled(Random& random, Direction direction, int requests) {
  std::vector<std::string> parts;
  const auto add = [&](const std::vector<std::string>& more) {
    parts.insert(parts.end(), more.begin(), more.end());
  };
  for (int n = 0; n < requests; ++n) {
    if (direction == Direction::kForward) {
      add(Parts(RandomRequest(random)));
      continue;
    }
    add(Parts(RandomBackwardRequest(random)));
    for (const std::string& part : Parts(RandomRequest(random))) {
      v1::AttendBackwardRequest one;
      one.mutable_forward()->ParseFromString(part);
      parts.push_back(one.SerializeAsString());
    }
  }
  std::shuffle(parts.begin(), parts.end(), random);
  std::string bytes;
  for (const std::string& part : parts) bytes += part;
  return bytes;
}

// Of a random request.
std::string RandomText(Random& random, Direction direction) {
  return direction == Direction::kForward ? RandomRequest(random).SerializeAsString()
                                          : RandomBackwardRequest(random).SerializeAsString();
}

std::vector<size_t> RandomCuts(Random& random, size_t size) {
  std::vector<size_t> cuts(random() % 12);
  for (size_t& cut : cuts) cut = random() % (size + 1);
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

std::vector<size_t> EveryByte(size_t size) {
  std::vector<size_t> cuts;
  for (size_t at = 1; at < size; ++at) cuts.push_back(at);
  return cuts;
}

std::string Hex(const std::string& bytes) { return absl::BytesToHexString(bytes); }

class AttendReaderTest : public testing::TestWithParam<Direction> {};

INSTANTIATE_TEST_SUITE_P(Directions, AttendReaderTest,
                         testing::Values(Direction::kForward, Direction::kBackward),
                         [](const testing::TestParamInfo<Direction>& param) {
                           return param.param == Direction::kForward ? "Forward" : "Backward";
                         });

TEST_P(AttendReaderTest, ReadsWhatTheGeneratedClassWrites) {
  Random random(1);
  for (int n = 0; n < 2000; ++n) {
    const std::string bytes = RandomText(random, GetParam());
    ASSERT_EQ(ReadError(GetParam(), bytes), "");
    ASSERT_EQ(DifferenceFromGenerated(GetParam(), bytes, RandomCuts(random, bytes.size())), "")
        << Hex(bytes);
    ASSERT_EQ(DifferenceFromGenerated(GetParam(), bytes, EveryByte(bytes.size())), "")
        << Hex(bytes);
  }
}

TEST_P(AttendReaderTest, EveryTwoSlicesAreAsGoodAsOne) {
  Random random(2);
  for (int n = 0; n < 20; ++n) {
    const std::string bytes = RandomText(random, GetParam());
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      ASSERT_EQ(DifferenceFromGenerated(GetParam(), bytes, {cut}), "") << cut << " " << Hex(bytes);
    }
  }
}

TEST_P(AttendReaderTest, AnyOrderAndRepeatedFieldsMergeAsProtobufMerges) {
  Random random(3);
  for (int n = 0; n < 2000; ++n) {
    const std::string bytes = Shuffled(random, GetParam(), 3);
    ASSERT_EQ(ReadError(GetParam(), bytes), "");
    ASSERT_EQ(DifferenceFromGenerated(GetParam(), bytes, RandomCuts(random, bytes.size())), "")
        << Hex(bytes);
  }
}

TEST_P(AttendReaderTest, TruncatedAnywhereItIsAsTheGeneratedClassHasIt) {
  Random random(4);
  size_t refused = 0;
  for (int n = 0; n < 30; ++n) {
    const std::string bytes = RandomText(random, GetParam());
    for (size_t size = 0; size < bytes.size(); ++size) {
      const std::string part = bytes.substr(0, size);
      ASSERT_EQ(DifferenceFromGenerated(GetParam(), part, RandomCuts(random, size)), "")
          << Hex(part);
      refused += ReadError(GetParam(), part).empty() ? 0 : 1;
    }
  }
  EXPECT_GT(refused, 1000u);
}

TEST_P(AttendReaderTest, RandomMutationsAreAsTheGeneratedClassHasThem) {
  Random random(5);
  int taken = 0;
  constexpr int kRuns = 30000;
  for (int n = 0; n < kRuns; ++n) {
    std::string bytes = RandomText(random, GetParam());
    for (size_t m = 1 + random() % 4; m > 0 && !bytes.empty(); --m) {
      const size_t at = random() % bytes.size();
      switch (random() % 5) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
          break;
        case 2:
          bytes.erase(at, 1 + random() % 3);
          break;
        case 3:
          bytes.insert(at, 1 + random() % 3, static_cast<char>(random()));
          break;
        default:
          bytes += bytes.substr(at, random() % 30);
      }
    }
    ASSERT_EQ(DifferenceFromGenerated(GetParam(), bytes, RandomCuts(random, bytes.size())), "")
        << Hex(bytes);
    taken += ReadError(GetParam(), bytes).empty() ? 1 : 0;
  }
  EXPECT_GT(taken, kRuns / 20);
  EXPECT_LT(taken, kRuns * 19 / 20);
}

TEST_P(AttendReaderTest, RandomBytesAreAsTheGeneratedClassHasThem) {
  Random random(6);
  for (int n = 0; n < 30000; ++n) {
    std::string bytes(random() % 24, '\0');
    // Small values, mostly: tags and lengths that mean something.
    for (char& byte : bytes) byte = static_cast<char>(random() & (random() % 4 == 0 ? 0xff : 0x7f));
    ASSERT_EQ(DifferenceFromGenerated(GetParam(), bytes, RandomCuts(random, bytes.size())), "")
        << Hex(bytes);
  }
}

std::string Repeat(const std::string& text, int count) {
  std::string all;
  for (int n = 0; n < count; ++n) all += text;
  return all;
}

struct Hostile {
  std::string name;
  std::string bytes;
  bool taken;
};

std::vector<Hostile> HostileMessages() {
  using std::string_literals::operator""s;
  const std::string q_tag = "\x6a";  // field 13, length-delimited
  return {
      {"VarintOfElevenBytes", absl::StrCat("\x20", Repeat("\xff", 10), "\x01"), false},
      {"VarintOfTenBytes", absl::StrCat("\x20", Repeat("\xff", 9), "\x01"), true},
      {"VarintWithoutEnd", absl::StrCat("\x20", Repeat("\xff", 9)), false},
      {"ZeroInTenBytes", absl::StrCat("\x20", Repeat("\x80", 9), "\x00"s), true},
      {"TagOfFiveBytes", "\xa0\x80\x80\x80\x00\x05"s, true},
      {"TagOfSixBytes", "\xa0\x80\x80\x80\x80\x00\x05"s, false},
      {"TagZero", "\x00"s, false},
      {"FieldZero", "\x02\x00"s, false},
      {"WireTypeSix", "\x26\x00"s, false},
      {"WireTypeSeven", "\x27\x00"s, false},
      {"LengthBeyondTheEnd", absl::StrCat(q_tag, "\x05", "\x08\x01"), false},
      {"LengthOf2GB", absl::StrCat(q_tag, "\xff\xff\xff\xff\x07"), false},
      {"LengthOf4GB", absl::StrCat(q_tag, "\xff\xff\xff\xff\x0f"), false},
      {"LengthOf64Bits", absl::StrCat(q_tag, Repeat("\xff", 9), "\x01"), false},
      {"LengthThatWrapsTo2", absl::StrCat(q_tag, "\x82\x80\x80\x80\x10", "\x08\x01"), false},
      {"DataOf2GB", absl::StrCat(q_tag, "\x06", "\x7a\xff\xff\xff\xff\x07"), false},
      {"DataBeyondItsTensor", absl::StrCat(q_tag, "\x03", "\x7a\x05", "abcdefgh"), false},
      {"PackedBeyondItsTensor", absl::StrCat(q_tag, "\x03", "\x12\x05", "\x01\x01\x01\x01\x01"),
       false},
      {"PackedVarintAcrossItsEnd", "\x0a\x02\x01\x80\x01", false},
      {"PackedRunOf2GB", "\x0a\xff\xff\xff\xff\x07", false},
      {"MaskAsBytes", "\x1a\x02\x08\x01", true},
      {"LensAsFixed32", "\x0d\x01\x02\x03\x04", true},
      {"LensOneByOne", "\x08\x01\x08\x02", true},
      {"QAsVarint", "\x68\x01", true},
      {"EpsAsVarint", "\x40\x01", true},
      {"EpsCutShort", "\x45\x01\x02", false},
      {"GroupThatEnds", "\xa3\x06\x08\x01\xa4\x06", true},
      {"GroupOfAnotherEnd", "\xa3\x06\x08\x01\xac\x06", false},
      {"GroupWithoutEnd", "\xa3\x06\x08\x01", false},
      {"EndWithoutGroup", "\xa4\x06", false},
      {"EndOfGroupInTensor", absl::StrCat(q_tag, "\x01\x0c"), false},
      {"GroupsHundredDeep", absl::StrCat(Repeat("\xa3\x06", 100), Repeat("\xa4\x06", 100)), true},
      {"GroupsTooDeep", absl::StrCat(Repeat("\xa3\x06", 101), Repeat("\xa4\x06", 101)), false},
      {"GroupsVeryDeep", Repeat("\xa3\x06", 1000000), false},
      {"GroupsDeepInATensor",
       absl::StrCat(q_tag, "\x90\x03", Repeat("\xa3\x06", 100), Repeat("\xa4\x06", 100)), false},
  };
}

// As a backward request's forward one. Groups there may be one less deep.
std::string AsForward(const std::string& bytes) {
  std::string size;
  for (size_t left = bytes.size(); true; left >>= 7) {
    size.push_back(static_cast<char>(left < 0x80 ? left : (left & 0x7f) | 0x80));
    if (left < 0x80) break;
  }
  return absl::StrCat("\x0a", size, bytes);
}

TEST(AttendReaderHostileTest, HostileMessages) {
  for (const Hostile& hostile : HostileMessages()) {
    const std::string error = ReadError(Direction::kForward, hostile.bytes);
    EXPECT_EQ(error.empty(), hostile.taken) << hostile.name << ": " << error;
    const std::string nested = AsForward(hostile.bytes);
    EXPECT_EQ(DifferenceFromGenerated(Direction::kBackward, hostile.bytes, {}), "") << hostile.name;
    EXPECT_EQ(DifferenceFromGenerated(Direction::kBackward, nested, {}), "") << hostile.name;
    if (hostile.name != "GroupsHundredDeep") {
      EXPECT_EQ(ReadError(Direction::kBackward, nested).empty(), hostile.taken) << hostile.name;
    }
    EXPECT_EQ(DifferenceFromGenerated(Direction::kForward, hostile.bytes, {}), "") << hostile.name;
    if (hostile.bytes.size() < 1000) {
      EXPECT_EQ(DifferenceFromGenerated(Direction::kForward, hostile.bytes,
                                        EveryByte(hostile.bytes.size())),
                "")
          << hostile.name;
      EXPECT_EQ(DifferenceFromGenerated(Direction::kBackward, nested, EveryByte(nested.size())), "")
          << hostile.name;
    }
  }
}

// A byte of a packed run becomes eight of memory: lists are bounded, not the message alone.
TEST(AttendReaderHostileTest, ListsAreBounded) {
  const auto error = [](const v1::AttendRequest& request) {
    v1::AttendBackwardRequest backward;
    *backward.mutable_forward() = request;
    const std::string forward = ReadError(Direction::kForward, request.SerializeAsString());
    EXPECT_EQ(ReadError(Direction::kBackward, backward.SerializeAsString()).empty(),
              forward.empty());
    return forward;
  };
  v1::AttendRequest request;
  for (int n = 0; n < 65537; ++n) request.add_q_lens(0);
  EXPECT_EQ(error(request), "") << "validation says how many came";
  request.add_q_lens(0);
  EXPECT_THAT(error(request), HasSubstr("q_lens has more than 65537"));
  EXPECT_THAT(ReadError(Direction::kForward, Repeat(std::string("\x30\x00", 2), 65538)),
              HasSubstr("key_start has more than 65537 entries"));
  request.Clear();
  for (int n = 0; n < 33; ++n) request.mutable_k()->add_shape(1);
  EXPECT_THAT(error(request), HasSubstr("k.shape has more than 32"));
  v1::AttendBackwardRequest backward;
  for (int n = 0; n < 33; ++n) backward.mutable_d_o()->add_shape(1);
  EXPECT_THAT(ReadError(Direction::kBackward, backward.SerializeAsString()),
              HasSubstr("d_o.shape has more than 32"));
}

TEST(AttendReaderHostileTest, ErrorsSayWhere) {
  EXPECT_EQ(ReadError(Direction::kForward, std::string("\x18\x01\x26", 3)),
            "the message of 3 bytes is no flashbias.v1.AttendRequest: malformed at byte 3");
  EXPECT_EQ(ReadError(Direction::kBackward, std::string("\x0a\x03\x18\x01\x26", 5)),
            "the message of 5 bytes is no flashbias.v1.AttendBackwardRequest: malformed at byte 5");
}

}  // namespace
}  // namespace flashbias::server
