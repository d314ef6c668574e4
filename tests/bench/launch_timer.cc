#include "tests/bench/launch_timer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/bench/cuda_check.h"

namespace flashbias::bench {
namespace {

// Several times the L2 of any device so far. Writing it also keeps the device busy while the host
// enqueues, so that events do not time the host.
constexpr size_t kFlushBytes = size_t{256} << 20;
constexpr double kWarmupMs = 50;
constexpr double kMeasuredMs = 500;

double Percentile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::max<size_t>(rank, 1) - 1];
}

}  // namespace

LaunchTimer::LaunchTimer(cudaStream_t stream)
    : stream_(stream), flush_(AllocateDevice(kFlushBytes)) {}

double LaunchTimer::TimeOne(const std::function<cudaError_t()>& launch, cudaEvent_t begin,
                            cudaEvent_t end) {
  FLASHBIAS_CHECK_CUDA(cudaMemsetAsync(flush_.get(), 0, kFlushBytes, stream_));
  FLASHBIAS_CHECK_CUDA(cudaEventRecord(begin, stream_));
  CheckCuda(launch(), "launch");
  FLASHBIAS_CHECK_CUDA(cudaEventRecord(end, stream_));
  FLASHBIAS_CHECK_CUDA(cudaEventSynchronize(end));
  float ms = 0;
  FLASHBIAS_CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
  return ms;
}

LaunchTimes LaunchTimer::Time(const std::function<cudaError_t()>& launch, int repeats) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  FLASHBIAS_CHECK_CUDA(cudaEventCreate(&begin));
  FLASHBIAS_CHECK_CUDA(cudaEventCreate(&end));

  // The first launch loads code; the clock needs some work to rise.
  TimeOne(launch, begin, end);
  double last_ms = 0;
  double warm_ms = 0;
  for (int i = 0; i < 3 || (warm_ms < kWarmupMs && i < 200); ++i) {
    last_ms = TimeOne(launch, begin, end);
    warm_ms += last_ms;
  }
  if (repeats <= 0) repeats = static_cast<int>(std::clamp(kMeasuredMs / last_ms, 5.0, 100.0));

  std::vector<double> times;
  times.reserve(repeats);
  for (int i = 0; i < repeats; ++i) times.push_back(TimeOne(launch, begin, end));
  FLASHBIAS_CHECK_CUDA(cudaEventDestroy(begin));
  FLASHBIAS_CHECK_CUDA(cudaEventDestroy(end));

  std::sort(times.begin(), times.end());
  return {.launches = repeats,
          .median_ms = Percentile(times, 0.5),
          .min_ms = times.front(),
          .p90_ms = Percentile(times, 0.9)};
}

}  // namespace flashbias::bench
