// The fp32 multiply-add rate of this machine, measured: the denominator of 'share of peak'.
#ifndef FLASHBIAS_TESTS_BENCH_FMA_PEAK_H_
#define FLASHBIAS_TESTS_BENCH_FMA_PEAK_H_

namespace flashbias::bench {

// Best of several short runs of register-only multiply-adds on `num_threads` threads at once, in
// GFLOP/s (a multiply-add is two). Uses the widest vectors that Highway finds here.
double MeasureFmaPeakGflops(int num_threads);

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_FMA_PEAK_H_
