// Element types of tensors and their scalar conversions.
//
// Everything here is a pure value function; all of it is thread-safe. The header needs only the
// standard library, so that the client, the kernels and the tests share one definition.
#ifndef FLASHBIAS_KERNELS_DTYPE_H_
#define FLASHBIAS_KERNELS_DTYPE_H_

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace flashbias {

enum class DType : uint8_t { kFloat16, kBFloat16, kFloat32 };

// Bytes per element.
constexpr size_t SizeOf(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// The name used in error messages, flags and documentation: "float16", "bfloat16", "float32".
constexpr const char* Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat32:
      return "float32";
  }
  return "unknown";
}

// IEEE 754 binary16 -> binary32, exact.
inline float Float16ToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t biased = exponent == 0x1f ? 0xffu : exponent + (127 - 15);
  return std::bit_cast<float>(sign | (biased << 23) | (mantissa << 13));
}

// binary32 -> IEEE 754 binary16, round to nearest even; overflow gives infinity, NaN stays NaN.
inline uint16_t FloatToFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x47800000u) return sign | 0x7c00u;  // 65536 and above
  if (magnitude < 0x38800000u) {                        // below 2^-14: subnormal or zero
    // Adding 0.5 leaves the subnormal's significand, correctly rounded, in the low mantissa bits.
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(rounded) - 0x3f000000u);
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return sign | static_cast<uint16_t>((magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}

// bfloat16 -> binary32, exact.
inline float BFloat16ToFloat(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

// binary32 -> bfloat16, round to nearest even; NaN stays NaN.
inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Reads element `index` of a packed array; `data` needs no alignment.
inline float LoadElement(DType dtype, const void* data, int64_t index) {
  const char* at = static_cast<const char*>(data) + index * static_cast<int64_t>(SizeOf(dtype));
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t raw;
  std::memcpy(&raw, at, sizeof(raw));
  return dtype == DType::kFloat16 ? Float16ToFloat(raw) : BFloat16ToFloat(raw);
}

// Writes element `index` of a packed array, rounded to nearest even; `data` needs no alignment.
inline void StoreElement(DType dtype, void* data, int64_t index, float value) {
  char* at = static_cast<char*>(data) + index * static_cast<int64_t>(SizeOf(dtype));
  if (dtype == DType::kFloat32) {
    std::memcpy(at, &value, sizeof(value));
    return;
  }
  const uint16_t raw = dtype == DType::kFloat16 ? FloatToFloat16(value) : FloatToBFloat16(value);
  std::memcpy(at, &raw, sizeof(raw));
}

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_DTYPE_H_
