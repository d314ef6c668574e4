#include "client/call/npy_tensor.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flashbias::client {
namespace {

double LoadNpyElement(NpyType type, const char* data, int64_t index) {
  if (type == NpyType::kFloat64) {
    double value;
    std::memcpy(&value, data + index * 8, sizeof(value));
    return value;
  }
  return static_cast<double>(
      LoadElement(type == NpyType::kFloat16 ? DType::kFloat16 : DType::kFloat32, data, index));
}

std::optional<DType> SameDType(NpyType type) {
  switch (type) {
    case NpyType::kFloat16:
      return DType::kFloat16;
    case NpyType::kFloat32:
      return DType::kFloat32;
    case NpyType::kUint16:
      return DType::kBFloat16;
    case NpyType::kFloat64:
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<OwnedTensor> ToTensor(const std::string& name, NpyArray array,
                                     std::optional<DType> wanted) {
  if (array.type == NpyType::kUint16 && wanted != DType::kBFloat16) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": uint16 holds raw bfloat16; accepted with --dtype=bfloat16 only"));
  }
  if (array.type == NpyType::kFloat64 && !wanted.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        name,
        ": float64 is not sent; say what to convert to with --dtype=float32|float16|bfloat16"));
  }
  const std::optional<DType> same = SameDType(array.type);
  const DType dtype = wanted.has_value() ? *wanted : *same;
  OwnedTensor tensor{.dtype = dtype, .shape = std::move(array.shape)};
  if (same == dtype) {
    tensor.data = std::move(array.data);
    return tensor;
  }
  const auto count = static_cast<int64_t>(array.data.size()) / NpySizeOf(array.type);
  tensor.data.resize(static_cast<size_t>(count) * SizeOf(dtype));
  for (int64_t n = 0; n < count; ++n) {
    const double value = LoadNpyElement(array.type, array.data.data(), n);
    StoreElement(dtype, tensor.data.data(), n, static_cast<float>(value));
    if (std::isfinite(value) && !std::isfinite(LoadElement(dtype, tensor.data.data(), n))) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": element ", n, " is ", value,
                                                     ", beyond the range of ", Name(dtype)));
    }
  }
  return tensor;
}

NpyArray ToNpy(const AttendResult& result) {
  if (result.dtype != DType::kBFloat16) {
    return {.type = result.dtype == DType::kFloat16 ? NpyType::kFloat16 : NpyType::kFloat32,
            .shape = result.shape,
            .data = result.o};
  }
  NpyArray array{.type = NpyType::kFloat32, .shape = result.shape};
  const auto count = static_cast<int64_t>(result.o.size() / sizeof(uint16_t));
  array.data.resize(static_cast<size_t>(count) * sizeof(float));
  for (int64_t n = 0; n < count; ++n) {
    StoreElement(DType::kFloat32, array.data.data(), n,
                 LoadElement(DType::kBFloat16, result.o.data(), n));
  }
  return array;
}

}  // namespace flashbias::client
