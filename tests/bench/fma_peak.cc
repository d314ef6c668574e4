#include "tests/bench/fma_peak.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/fma_peak.cc"
#include "hwy/foreach_target.h"
// Highway's headers come after foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace flashbias::bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Runs `steps` rounds of 12 independent multiply-adds; returns the floating-point operations done.
double SpinFma(int64_t steps, float* sink) {
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, 0.999999f);
  const auto term = hn::Set(d, 1e-6f);
  // Different values each, or the compiler keeps one chain for all of them.
  const auto start = [d](int n)
                         HWY_ATTR { return hn::Set(d, 1.0f + 0.01f * static_cast<float>(n)); };
  auto a0 = start(0), a1 = start(1), a2 = start(2), a3 = start(3), a4 = start(4), a5 = start(5);
  auto a6 = start(6), a7 = start(7), a8 = start(8), a9 = start(9), a10 = start(10), a11 = start(11);
  for (int64_t i = 0; i < steps; ++i) {
    a0 = hn::MulAdd(a0, factor, term);
    a1 = hn::MulAdd(a1, factor, term);
    a2 = hn::MulAdd(a2, factor, term);
    a3 = hn::MulAdd(a3, factor, term);
    a4 = hn::MulAdd(a4, factor, term);
    a5 = hn::MulAdd(a5, factor, term);
    a6 = hn::MulAdd(a6, factor, term);
    a7 = hn::MulAdd(a7, factor, term);
    a8 = hn::MulAdd(a8, factor, term);
    a9 = hn::MulAdd(a9, factor, term);
    a10 = hn::MulAdd(a10, factor, term);
    a11 = hn::MulAdd(a11, factor, term);
  }
  const auto low = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(a4, a5));
  const auto high = hn::Add(hn::Add(hn::Add(a6, a7), hn::Add(a8, a9)), hn::Add(a10, a11));
  *sink = hn::GetLane(hn::Add(low, high));
  return 2.0 * 12.0 * static_cast<double>(hn::Lanes(d)) * static_cast<double>(steps);
}

}  // namespace HWY_NAMESPACE
}  // namespace flashbias::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashbias::bench {

HWY_EXPORT(SpinFma);

double MeasureFmaPeakGflops(int num_threads) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kSteps = 4'000'000;
  struct Span {
    Clock::time_point begin;
    Clock::time_point end;
    double operations = 0;
    float sink = 0;
  };
  double best = 0;
  for (int run = 0; run < 8; ++run) {
    std::barrier gate(num_threads);
    std::vector<Span> spans(num_threads);
    std::vector<std::thread> threads;
    for (Span& span : spans) {
      threads.emplace_back([&span, &gate] {
        gate.arrive_and_wait();
        span.begin = Clock::now();
        span.operations = HWY_DYNAMIC_DISPATCH(SpinFma)(kSteps, &span.sink);
        span.end = Clock::now();
      });
    }
    for (std::thread& thread : threads) thread.join();
    Clock::time_point begin = spans.front().begin;
    Clock::time_point end = spans.front().end;
    double operations = 0;
    for (const Span& span : spans) {
      begin = std::min(begin, span.begin);
      end = std::max(end, span.end);
      operations += span.operations;
    }
    const std::chrono::duration<double> seconds = end - begin;
    best = std::max(best, operations / seconds.count() * 1e-9);
  }
  return best;
}

}  // namespace flashbias::bench
#endif  // HWY_ONCE
