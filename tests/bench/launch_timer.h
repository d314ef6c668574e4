// Times device work as its first caller would see it: each launch alone between two events, with
// nothing of its inputs in the L2 cache.
#ifndef FLASHBIAS_TESTS_BENCH_LAUNCH_TIMER_H_
#define FLASHBIAS_TESTS_BENCH_LAUNCH_TIMER_H_

#include <cuda_runtime_api.h>

#include <functional>

#include "tests/bench/cuda_memory.h"

namespace flashbias::bench {

struct LaunchTimes {
  int launches = 0;
  double median_ms = 0;
  double min_ms = 0;
  double p90_ms = 0;
};

class LaunchTimer {
 public:
  explicit LaunchTimer(cudaStream_t stream);

  // Warms up, then times `repeats` launches; 0: as many as take about half a second, 5 to 100.
  // `launch` enqueues on the timer's stream.
  LaunchTimes Time(const std::function<cudaError_t()>& launch, int repeats);

 private:
  double TimeOne(const std::function<cudaError_t()>& launch, cudaEvent_t begin, cudaEvent_t end);

  const cudaStream_t stream_;
  DeviceMemory flush_;
};

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_LAUNCH_TIMER_H_
