#include "wire/message_reader.h"

#include <bit>
#include <limits>

#include "absl/strings/str_cat.h"

namespace flashbias::wire {
namespace {

// Wire types.
constexpr uint32_t kVarint = 0;
constexpr uint32_t kFixed64 = 1;
constexpr uint32_t kLengthDelimited = 2;
constexpr uint32_t kStartGroup = 3;
constexpr uint32_t kEndGroup = 4;
constexpr uint32_t kFixed32 = 5;

// The longest encodings that the generated classes take.
constexpr int kMaxTagBytes = 5;
constexpr int kMaxLengthBytes = 5;
// Theirs too: room for the parser to look ahead.
constexpr uint64_t kMaxLength = std::numeric_limits<int>::max() - 16;

uint32_t WireType(uint32_t tag) { return tag & 7; }

int64_t FromZigzag(uint64_t value) {
  return static_cast<int64_t>((value >> 1) ^ (~(value & 1) + 1));
}

}  // namespace

MessageReader::MessageReader(absl::Span<const grpc::Slice> slices)
    : stream_(slices), coded_(&stream_) {
  uint64_t size = 0;
  for (const grpc::Slice& slice : slices) size += slice.size();
  if (size > kMaxLength) {
    ok_ = false;
    error_ = absl::StrCat("it is larger than ", kMaxLength, " bytes");
    return;
  }
  coded_.PushLimit(static_cast<int>(size));
}

bool MessageReader::Fail() {
  if (ok_) error_ = absl::StrCat("malformed at byte ", coded_.CurrentPosition());
  ok_ = false;
  return false;
}

bool MessageReader::Next() {
  if (!ok_ || coded_.BytesUntilLimit() == 0) return false;
  // A group ends only where SkipGroup looks for its end.
  if (!ReadTag() || WireType(tag_) == kEndGroup) Fail();
  return ok_;
}

bool MessageReader::ReadTag() {
  const int begin = coded_.CurrentPosition();
  uint64_t tag = 0;
  if (!coded_.ReadVarint64(&tag) || coded_.CurrentPosition() - begin > kMaxTagBytes) return false;
  tag_ = static_cast<uint32_t>(tag);
  return tag_ >> 3 != 0;
}

bool MessageReader::ReadLength(int* length) {
  const int begin = coded_.CurrentPosition();
  uint64_t value = 0;
  if (!coded_.ReadVarint64(&value) || coded_.CurrentPosition() - begin > kMaxLengthBytes ||
      value > kMaxLength) {
    return false;
  }
  *length = static_cast<int>(value);
  return true;
}

bool MessageReader::SkipGroup(uint32_t field) {
  if (!coded_.IncrementRecursionDepth()) return false;
  while (true) {
    if (!ReadTag()) return false;
    if (WireType(tag_) == kEndGroup) {
      coded_.DecrementRecursionDepth();
      return tag_ >> 3 == field;
    }
    if (!SkipValue()) return false;
  }
}

bool MessageReader::SkipValue() {
  switch (WireType(tag_)) {
    case kVarint: {
      uint64_t value = 0;
      return coded_.ReadVarint64(&value);
    }
    case kFixed64: {
      uint64_t value = 0;
      return coded_.ReadLittleEndian64(&value);
    }
    case kFixed32: {
      uint32_t value = 0;
      return coded_.ReadLittleEndian32(&value);
    }
    case kLengthDelimited: {
      int length = 0;
      return ReadLength(&length) && coded_.Skip(length);
    }
    case kStartGroup:
      return SkipGroup(tag_ >> 3);
    default:
      return false;
  }
}

void MessageReader::Skip() {
  if (!SkipValue()) Fail();
}

bool MessageReader::SkipUnknown() {
  Skip();
  return false;
}

bool MessageReader::ReadVarint(int64_t* value) {
  if (WireType(tag_) != kVarint) return SkipUnknown();
  uint64_t read = 0;
  if (!coded_.ReadVarint64(&read)) return Fail();
  *value = static_cast<int64_t>(read);
  return true;
}

bool MessageReader::ReadEnum(int* value) {
  int64_t read = 0;
  if (!ReadVarint(&read)) return false;
  *value = static_cast<int>(read);
  return true;
}

bool MessageReader::ReadBool(bool* value) {
  int64_t read = 0;
  if (!ReadVarint(&read)) return false;
  *value = read != 0;
  return true;
}

bool MessageReader::ReadFloat(float* value) {
  if (WireType(tag_) != kFixed32) return SkipUnknown();
  uint32_t read = 0;
  if (!coded_.ReadLittleEndian32(&read)) return Fail();
  *value = std::bit_cast<float>(read);
  return true;
}

bool MessageReader::ReadDouble(double* value) {
  uint64_t read = 0;
  if (!ReadFixed64(&read)) return false;
  *value = std::bit_cast<double>(read);
  return true;
}

bool MessageReader::ReadFixed64(uint64_t* value) {
  if (WireType(tag_) != kFixed64) return SkipUnknown();
  uint64_t read = 0;
  if (!coded_.ReadLittleEndian64(&read)) return Fail();
  *value = read;
  return true;
}

bool MessageReader::ReadBytes(ByteRange* value) {
  if (WireType(tag_) != kLengthDelimited) return SkipUnknown();
  int length = 0;
  if (!ReadLength(&length)) return Fail();
  const int begin = coded_.CurrentPosition();
  if (!coded_.Skip(length)) return Fail();
  *value = {.begin = static_cast<size_t>(begin), .size = static_cast<size_t>(length)};
  return true;
}

bool MessageReader::AppendNumber(const char* name, size_t limit, bool zigzag,
                                 std::vector<int64_t>* values) {
  uint64_t read = 0;
  if (!coded_.ReadVarint64(&read)) return Fail();
  if (values->size() == limit) {
    ok_ = false;
    error_ = absl::StrCat(name, " has more than ", limit, " entries");
    return false;
  }
  values->push_back(zigzag ? FromZigzag(read) : static_cast<int64_t>(read));
  return true;
}

void MessageReader::ReadNumbers(const char* name, size_t limit, bool zigzag,
                                std::vector<int64_t>* values) {
  if (WireType(tag_) == kVarint) {
    AppendNumber(name, limit, zigzag, values);
    return;
  }
  if (WireType(tag_) != kLengthDelimited) return Skip();
  int length = 0;
  if (!ReadLength(&length) || length > coded_.BytesUntilLimit()) {
    Fail();
    return;
  }
  const auto enclosing = coded_.PushLimit(length);
  while (coded_.BytesUntilLimit() > 0) {
    if (!AppendNumber(name, limit, zigzag, values)) return;
  }
  coded_.PopLimit(enclosing);
}

void MessageReader::ReadRepeated(const char* name, size_t limit, std::vector<int64_t>* values) {
  ReadNumbers(name, limit, /*zigzag=*/false, values);
}

void MessageReader::ReadRepeatedZigzag(const char* name, size_t limit,
                                       std::vector<int64_t>* values) {
  ReadNumbers(name, limit, /*zigzag=*/true, values);
}

void MessageReader::ReadMessage(absl::FunctionRef<void()> read_fields) {
  if (WireType(tag_) != kLengthDelimited) return Skip();
  int length = 0;
  if (!ReadLength(&length) || length > coded_.BytesUntilLimit() ||
      !coded_.IncrementRecursionDepth()) {
    Fail();
    return;
  }
  const auto enclosing = coded_.PushLimit(length);
  read_fields();
  coded_.PopLimit(enclosing);
  coded_.DecrementRecursionDepth();
}

}  // namespace flashbias::wire
