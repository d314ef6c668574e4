// The least time that a device can need for attention, from three rates: pure arithmetic.
#ifndef FLASHBIAS_TESTS_BENCH_ATTENTION_FLOOR_H_
#define FLASHBIAS_TESTS_BENCH_ATTENTION_FLOOR_H_

#include "tests/bench/bench_case.h"

namespace flashbias::bench {

// Defaults are an H200's, measured: HGX data sheets give 989 dense fp16 TFLOPS, which is 4096
// operations per clock and SM at 132 SMs and 1.83 GHz, the most that the clock reaches while the
// tensor cores work; ex2 and the copy rate (read and written) are those of microbenchmarks.
struct DeviceRates {
  int num_sms = 132;
  double clock_hz = 1.83e9;
  double tensor_flops_per_clock_per_sm = 4096;
  double exps_per_clock_per_sm = 16;
  double memory_bytes_per_s = 4.25e12;
};

struct FloorMs {
  double tensor = 0;  // 4 D (backward 10 D; low-rank: + 2 R) operations a computed score
  double exp = 0;     // one a computed score
  double memory = 0;  // tensors and factors once, whatever is skipped
  double Largest() const;
};

// `computed_share` of the pairs that the mask admits are computed, the rest skipped.
FloorMs AttentionFloor(const BenchCase& shape, double computed_share, const DeviceRates& rates);

// Operations of the two products, backward five, over every admitted pair.
double DenseFlops(const BenchCase& shape);

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_ATTENTION_FLOOR_H_
