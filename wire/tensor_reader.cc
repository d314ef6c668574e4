#include "wire/tensor_reader.h"

#include "wire/contract.h"

namespace flashbias::wire {
namespace {

void ReadUnsigned(MessageReader* reader, uint64_t* value) {
  int64_t read = 0;
  if (reader->ReadVarint(&read)) *value = static_cast<uint64_t>(read);
}

}  // namespace

void ReadTensor(const char* name, MessageReader* reader, TensorField* tensor) {
  reader->ReadMessage([&] {
    tensor->present = true;
    while (reader->Next()) {
      switch (reader->field()) {
        case TensorNumber::kDType:
          reader->ReadEnum(&tensor->dtype);
          break;
        case TensorNumber::kShape:
          reader->ReadRepeated(name, kMaxExtents, &tensor->shape);
          break;
        case TensorNumber::kRegionId:
          reader->ReadFixed64(&tensor->place.region_id);
          break;
        case TensorNumber::kRegionOffset:
          ReadUnsigned(reader, &tensor->place.offset);
          break;
        case TensorNumber::kData:
          reader->ReadBytes(&tensor->data);
          break;
        default:
          reader->Skip();
      }
    }
  });
}

bool ReadPlace(MessageReader* reader, RegionPlace* place) {
  bool present = false;
  reader->ReadMessage([&] {
    present = true;
    while (reader->Next()) {
      switch (reader->field()) {
        case PlaceNumber::kRegionId:
          reader->ReadFixed64(&place->region_id);
          break;
        case PlaceNumber::kOffset:
          ReadUnsigned(reader, &place->offset);
          break;
        default:
          reader->Skip();
      }
    }
  });
  return present;
}

}  // namespace flashbias::wire
