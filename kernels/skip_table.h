// Which key tiles can hold softmax mass: skipping with a proof.
//
// For a head with ALiBi slope s > 0, a query row i and a set J of keys on one side of i, all at
// distance >= W, let U_i(J) = |softmax_scale| |q_i| max_{j in J} |k_j|. By Cauchy-Schwarz every key
// in J has logit[i, j] <= U_i(J) - s |i - j|, distances on one side are distinct integers, and so
// J holds at most
//
//   exp(U_i(J) - s W - lse_i) / (1 - exp(-s))
//
// of row i's softmax mass. Any lower bound of lse_i will do: the logit of the nearest admitted key
// before anything is computed, or the log-sum-exp of the keys that a kernel has already seen. A
// kernel that walks from the nearest keys outwards may stop once that is <= eps for what is left
// (eps / 2 a side where the mask admits keys on both sides); then |o_i error| <= 2 eps max|v|.
// Because J is what is left and not all keys, one far outlier in k costs only the tiles that reach
// it.
//
// SkipTable holds the max |k| of what is left, for both directions; SkipBound decides. Everything
// is rounded towards keeping a key; NaN and infinity in a bound keep it.
//
// Thread-safety: plain values and pure functions.
#ifndef FLASHBIAS_KERNELS_SKIP_TABLE_H_
#define FLASHBIAS_KERNELS_SKIP_TABLE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/attention_problem.h"

namespace flashbias {

// Half-open range of key rows, 0-based in their sequence; begin == end: none.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// The keys that the mask admits for query row `q_row` (0-based in the sequence).
KeyRange AdmittedKeys(const Sequence& sequence, const Mask& mask, int64_t q_row);

// The keys that the mask admits for any query row of the sequence.
KeyRange AdmittedKeysOfAnyRow(const Sequence& sequence, const Mask& mask);

// Running maxima of |k| over the key tiles of one sequence and one key/value head.
struct SkipTable {
  std::vector<float> prefix_max;  // [num_kv_tiles]: over tiles 0 .. t
  std::vector<float> suffix_max;  // [num_kv_tiles]: over tiles t .. last
};

// `tile_max` is the largest |k| of each key tile; NaN counts as infinity.
SkipTable MakeSkipTable(absl::Span<const float> tile_max);

// The decision for one head. A default-constructed bound never lets anything be skipped.
class SkipBound {
 public:
  SkipBound() = default;
  // s <= 0, NaN or infinity in s, and eps = 0 give a bound that keeps every key. `two_sided` is
  // true where a row may have admitted keys on both sides.
  SkipBound(float slope, float eps, bool two_sided);

  // True only if keys with |k| <= max_k_norm, on one side of the row, hold at most their share of
  // eps of the row's mass. Logits are natural-log and relative: all of them shifted by
  // s * (distance of the row's nearest admitted key), which keeps far-away positions exact.
  //   q_norm        |softmax_scale| |q_i|
  //   distance      of the nearest key in question, less that of the nearest admitted key; >= 0
  //   lse_at_least  a lower bound of the row's log-sum-exp
  bool Negligible(double q_norm, double max_k_norm, double distance, double lse_at_least) const {
    // The slack covers fp32 rounding of norms, logits and running sums; a NaN compares false.
    const double logit_at_most = q_norm * max_k_norm * (1.0 + 1e-4) + 1e-3;
    return enabled_ && distance >= 0 &&
           logit_at_most - slope_ * distance - lse_at_least <= log_budget_;
  }

 private:
  bool enabled_ = false;
  double slope_ = 0;
  double log_budget_ = 0;  // ln(eps a side) + ln(1 - exp(-s))
};

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_SKIP_TABLE_H_
