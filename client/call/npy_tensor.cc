#include "client/call/npy_tensor.h"

#include <bit>
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

// To a float that a conversion to 16 bits rounds as it would have rounded `value`: what a float
// cannot hold is kept as a last bit of 1, so that no tie appears that was none.
float ToFloatRoundedToOdd(double value) {
  const auto nearest = static_cast<float>(value);
  if (!std::isfinite(value) || static_cast<double>(nearest) == value) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(value)) --bits;  // toward zero
  return std::bit_cast<float>(bits | 1u);
}

absl::Status CheckUint16(const std::string& name, std::optional<DType> wanted,
                         const char* dtype_flag) {
  if (wanted == DType::kBFloat16) return absl::OkStatus();
  if (dtype_flag == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": uint16 is not read here; accepted: float16, float32 or float64"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      name, ": uint16 holds raw bfloat16; accepted with ", dtype_flag, "=bfloat16 only"));
}

absl::Status CheckFloat64(const std::string& name, std::optional<DType> wanted,
                          const char* dtype_flag) {
  if (wanted.has_value()) return absl::OkStatus();
  if (dtype_flag == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": float64 is not sent; accepted: float16 or float32"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": float64 is not sent; say what to convert to with ", dtype_flag,
                   "=float32|float16|bfloat16"));
}

}  // namespace

absl::StatusOr<OwnedTensor> ToTensor(const std::string& name, NpyArray array,
                                     std::optional<DType> wanted, const char* dtype_flag) {
  absl::Status served = absl::OkStatus();
  if (array.type == NpyType::kUint16) served = CheckUint16(name, wanted, dtype_flag);
  if (array.type == NpyType::kFloat64) served = CheckFloat64(name, wanted, dtype_flag);
  if (!served.ok()) return served;
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
    StoreElement(dtype, tensor.data.data(), n,
                 dtype == DType::kFloat32 ? static_cast<float>(value) : ToFloatRoundedToOdd(value));
    if (std::isfinite(value) && !std::isfinite(LoadElement(dtype, tensor.data.data(), n))) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": element ", n, " is ", value,
                                                     ", beyond the range of ", Name(dtype)));
    }
  }
  return tensor;
}

NpyArray ToNpy(DType dtype, const std::vector<int64_t>& shape, const std::string& elements) {
  if (dtype != DType::kBFloat16) {
    return {.type = dtype == DType::kFloat16 ? NpyType::kFloat16 : NpyType::kFloat32,
            .shape = shape,
            .data = elements};
  }
  NpyArray array{.type = NpyType::kFloat32, .shape = shape};
  const auto count = static_cast<int64_t>(elements.size() / sizeof(uint16_t));
  array.data.resize(static_cast<size_t>(count) * sizeof(float));
  for (int64_t n = 0; n < count; ++n) {
    StoreElement(DType::kFloat32, array.data.data(), n,
                 LoadElement(DType::kBFloat16, elements.data(), n));
  }
  return array;
}

}  // namespace flashbias::client
