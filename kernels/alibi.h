// ALiBi slopes (Press, Smith, Lewis 2022, "Train Short, Test Long", section 3).
//
// Slopes are fp32, one per query head, positive to penalise distance:
//   bias[i, j] = -slope[h] * |i - j|
// Pure functions, thread-safe, standard library only: shared by client, kernels and tests.
#ifndef FLASHBIAS_KERNELS_ALIBI_H_
#define FLASHBIAS_KERNELS_ALIBI_H_

#include <cmath>
#include <vector>

namespace flashbias {

// Press et al.'s slopes for any head count (their reference implementation, get_slopes): for a
// power of two H, 2^(-8 k / H) for k = 1..H; otherwise those of the largest power of two P <= H,
// followed by the first H - P odd-numbered slopes (k = 1, 3, 5, ...) of 2 P heads.
// REQUIRES: num_heads >= 0.
inline std::vector<float> StandardAlibiSlopes(int num_heads) {
  std::vector<float> slopes;
  int power = 1;
  while (power * 2 <= num_heads) power *= 2;
  for (int k = 1; k <= power && k <= num_heads; ++k) {
    slopes.push_back(static_cast<float>(std::exp2(-8.0 * k / power)));
  }
  for (int k = 1; static_cast<int>(slopes.size()) < num_heads; k += 2) {
    slopes.push_back(static_cast<float>(std::exp2(-8.0 * k / (2.0 * power))));
  }
  return slopes;
}

// 2^(-8 k / H) for k = 1..H, whatever H is: the slopes of the FlashBias language-model example.
// REQUIRES: num_heads >= 0.
inline std::vector<float> SeedAlibiSlopes(int num_heads) {
  std::vector<float> slopes;
  for (int k = 1; k <= num_heads; ++k) {
    slopes.push_back(static_cast<float>(std::exp2(-8.0 * k / num_heads)));
  }
  return slopes;
}

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_ALIBI_H_
