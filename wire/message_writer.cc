#include "wire/message_writer.h"

#include <bit>

#include "wire/contract.h"

namespace flashbias::wire {
namespace {

// Wire types.
constexpr uint32_t kVarint = 0;
constexpr uint32_t kFixed64 = 1;
constexpr uint32_t kLengthDelimited = 2;
constexpr uint32_t kFixed32 = 5;

static_assert(std::endian::native == std::endian::little, "fixed-width fields are little-endian");

uint64_t ToZigzag(int64_t value) {
  return (static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63);
}

size_t VarintSize(uint64_t value) {
  return (static_cast<size_t>(std::bit_width(value | 1)) + 6) / 7;
}

size_t TagSize(int field) { return VarintSize(static_cast<uint64_t>(field) << 3); }

// Of the fields of a place with these numbers.
uint64_t PlaceSize(int id_field, int offset_field, const RegionPlace& place) {
  uint64_t size = 0;
  if (place.region_id != 0) size += TagSize(id_field) + sizeof(place.region_id);
  if (place.offset != 0) size += TagSize(offset_field) + VarintSize(place.offset);
  return size;
}

// Of the Tensor message without the tag and length of the field that holds it.
uint64_t TensorSize(DType dtype, absl::Span<const int64_t> shape, uint64_t data_bytes,
                    const RegionPlace& place) {
  uint64_t size = TagSize(TensorNumber::kDType) + VarintSize(static_cast<uint64_t>(ToWire(dtype)));
  if (!shape.empty()) {
    uint64_t packed = 0;
    for (const int64_t extent : shape) packed += VarintSize(static_cast<uint64_t>(extent));
    size += TagSize(TensorNumber::kShape) + VarintSize(packed) + packed;
  }
  size += PlaceSize(TensorNumber::kRegionId, TensorNumber::kRegionOffset, place);
  if (data_bytes > 0) size += TagSize(TensorNumber::kData) + VarintSize(data_bytes) + data_bytes;
  return size;
}

}  // namespace

void MessageWriter::RawVarint(uint64_t value) {
  while (value >= 0x80) {
    bytes_.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  bytes_.push_back(static_cast<char>(value));
}

void MessageWriter::Tag(int field, uint32_t wire_type) {
  RawVarint(static_cast<uint64_t>(field) << 3 | wire_type);
}

void MessageWriter::Varint(int field, int64_t value) {
  if (value == 0) return;
  Tag(field, kVarint);
  RawVarint(static_cast<uint64_t>(value));
}

void MessageWriter::Double(int field, double value) {
  Fixed64(field, std::bit_cast<uint64_t>(value));
}

void MessageWriter::Fixed64(int field, uint64_t value) {
  if (value == 0) return;
  Tag(field, kFixed64);
  Bytes(&value, sizeof(value));
}

void MessageWriter::Float(int field, float value) {
  Tag(field, kFixed32);
  Bytes(&value, sizeof(value));
}

void MessageWriter::Packed(int field, absl::Span<const int64_t> values) {
  if (values.empty()) return;
  uint64_t size = 0;
  for (const int64_t value : values) size += VarintSize(static_cast<uint64_t>(value));
  LengthDelimited(field, size);
  for (const int64_t value : values) RawVarint(static_cast<uint64_t>(value));
}

void MessageWriter::PackedZigzag(int field, absl::Span<const int64_t> values) {
  if (values.empty()) return;
  uint64_t size = 0;
  for (const int64_t value : values) size += VarintSize(ToZigzag(value));
  LengthDelimited(field, size);
  for (const int64_t value : values) RawVarint(ToZigzag(value));
}

void MessageWriter::LengthDelimited(int field, uint64_t size) {
  Tag(field, kLengthDelimited);
  RawVarint(size);
}

void MessageWriter::TensorHeader(int field, DType dtype, absl::Span<const int64_t> shape,
                                 uint64_t data_bytes) {
  LengthDelimited(field, TensorSize(dtype, shape, data_bytes, {}));
  Varint(TensorNumber::kDType, ToWire(dtype));
  Packed(TensorNumber::kShape, shape);
  if (data_bytes > 0) LengthDelimited(TensorNumber::kData, data_bytes);
}

void MessageWriter::TensorInRegion(int field, DType dtype, absl::Span<const int64_t> shape,
                                   const RegionPlace& place) {
  LengthDelimited(field, TensorSize(dtype, shape, 0, place));
  Varint(TensorNumber::kDType, ToWire(dtype));
  Packed(TensorNumber::kShape, shape);
  Fixed64(TensorNumber::kRegionId, place.region_id);
  Varint(TensorNumber::kRegionOffset, static_cast<int64_t>(place.offset));
}

void MessageWriter::Place(int field, const RegionPlace& place) {
  LengthDelimited(field, PlaceSize(PlaceNumber::kRegionId, PlaceNumber::kOffset, place));
  Fixed64(PlaceNumber::kRegionId, place.region_id);
  Varint(PlaceNumber::kOffset, static_cast<int64_t>(place.offset));
}

void MessageWriter::Bytes(const void* data, size_t size) {
  bytes_.append(static_cast<const char*>(data), size);
}

uint64_t TensorFieldSize(int field, DType dtype, absl::Span<const int64_t> shape,
                         uint64_t data_bytes) {
  const uint64_t size = TensorSize(dtype, shape, data_bytes, {});
  return TagSize(field) + VarintSize(size) + size;
}

uint64_t TensorInRegionSize(int field, DType dtype, absl::Span<const int64_t> shape,
                            const RegionPlace& place) {
  const uint64_t size = TensorSize(dtype, shape, 0, place);
  return TagSize(field) + VarintSize(size) + size;
}

}  // namespace flashbias::wire
