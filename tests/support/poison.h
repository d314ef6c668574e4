// What unwritten outputs hold, and the bytes around them.
//
// The patterns are NaNs with the quiet bit clear: arithmetic and conversions yield quiet ones only.
// Thread-safety: pure functions.
#ifndef FLASHBIAS_TESTS_SUPPORT_POISON_H_
#define FLASHBIAS_TESTS_SUPPORT_POISON_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/dtype.h"

namespace flashbias::support {

inline constexpr size_t kGuardBytes = 64;
inline constexpr char kGuard = '\x5a';

// In the first SizeOf(dtype) bytes, little-endian.
constexpr uint32_t PoisonOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 0x7da5;
    case DType::kBFloat16:
      return 0x7fa5;
    case DType::kFloat32:
      return 0x7fa5a5a5;
  }
  return 0;
}

inline void FillWithPoison(DType dtype, char* data, size_t bytes) {
  const uint32_t pattern = PoisonOf(dtype);
  const size_t element = SizeOf(dtype);
  for (size_t at = 0; at + element <= bytes; at += element) {
    std::memcpy(data + at, &pattern, element);
  }
}

// Index of the first element that still holds the pattern, -1 when none does.
inline int64_t FindPoison(DType dtype, const char* data, size_t bytes) {
  const uint32_t pattern = PoisonOf(dtype);
  const size_t element = SizeOf(dtype);
  for (size_t at = 0; at + element <= bytes; at += element) {
    if (std::memcmp(data + at, &pattern, element) == 0) return static_cast<int64_t>(at / element);
  }
  return -1;
}

inline bool IsGuard(const char* begin, const char* end) {
  return std::all_of(begin, end, [](char c) { return c == kGuard; });
}

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_POISON_H_
