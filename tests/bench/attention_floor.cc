#include "tests/bench/attention_floor.h"

#include <algorithm>

namespace flashbias::bench {

namespace {

// Products of a tile, of 2 D operations a score each: backward, the scores, dP, dv, dk and dq.
double NumProducts(const BenchCase& shape) {
  return shape.direction == Direction::kBackward ? 5 : 2;
}

}  // namespace

double FloorMs::Largest() const { return std::max({tensor, exp, memory}); }

double DenseFlops(const BenchCase& shape) {
  return NumProducts(shape) * 2 * shape.head_dim * shape.num_q_heads * AdmittedPairs(shape);
}

FloorMs AttentionFloor(const BenchCase& shape, double computed_share, const DeviceRates& rates) {
  const double clocks_per_ms = rates.num_sms * rates.clock_hz * 1e-3;
  const double scores = computed_share * shape.num_q_heads * AdmittedPairs(shape);
  const int rank = shape.bias == BiasKind::kLowRank ? shape.rank : 0;

  const double q_rows = static_cast<double>(shape.batch * shape.q_len);
  const double kv_rows = static_cast<double>(shape.batch * shape.kv_len);
  // q and o, k and v; backward also d_o and dq, dk and dv.
  const bool backward = shape.direction == Direction::kBackward;
  const double elements = (backward ? 4.0 : 2.0) * shape.head_dim *
                          (q_rows * shape.num_q_heads + kv_rows * shape.num_kv_heads);
  const double factors = static_cast<double>(rank) * shape.num_q_heads * (q_rows + kv_rows);
  const double bytes = elements * static_cast<double>(SizeOf(shape.dtype)) +
                       factors * static_cast<double>(SizeOf(DType::kFloat32)) +
                       (backward ? q_rows * shape.num_q_heads * sizeof(float) : 0);

  return {.tensor = scores * (NumProducts(shape) * 2 * shape.head_dim + 2.0 * rank) /
                    (rates.tensor_flops_per_clock_per_sm * clocks_per_ms),
          .exp = scores / (rates.exps_per_clock_per_sm * clocks_per_ms),
          .memory = bytes / (rates.memory_bytes_per_s * 1e-3)};
}

}  // namespace flashbias::bench
