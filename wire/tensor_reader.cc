#include "wire/tensor_reader.h"

#include "wire/contract.h"

namespace flashbias::wire {

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
        case TensorNumber::kData:
          reader->ReadBytes(&tensor->data);
          break;
        default:
          reader->Skip();
      }
    }
  });
}

}  // namespace flashbias::wire
