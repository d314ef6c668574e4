// What scores are relative to, in the log2 domain.
//
// Pure functions, thread-safe.
#ifndef FLASHBIAS_KERNELS_CPU_REFERENCE_KEY_H_
#define FLASHBIAS_KERNELS_CPU_REFERENCE_KEY_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numbers>

#include "kernels/skip_table.h"

namespace flashbias::cpu {

inline constexpr double kLog2E = std::numbers::log2e;
inline constexpr double kLn2 = std::numbers::ln2;

// The admitted key with the largest ALiBi bias: the nearest one, or for a negative slope the
// farthest. Scores relative to it are small where the softmax mass is. REQUIRES: `keys` not empty.
inline int64_t ReferenceKey(KeyRange keys, int64_t position, double slope) {
  const int64_t nearest = std::clamp(position, keys.begin, keys.end - 1);
  if (slope >= 0) return nearest;
  const int64_t last = keys.end - 1;
  return std::abs(position - keys.begin) >= std::abs(position - last) ? keys.begin : last;
}

// What a float cannot hold becomes the largest one: infinity times a distance of 0 would be NaN.
inline float ToFiniteFloat(double value) {
  constexpr double kMax = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kMax, kMax));
}

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_REFERENCE_KEY_H_
