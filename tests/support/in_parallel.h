// Work of the tests themselves on all cores.
//
// Thread-safety: pure function.
#ifndef FLASHBIAS_TESTS_SUPPORT_IN_PARALLEL_H_
#define FLASHBIAS_TESTS_SUPPORT_IN_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace flashbias::support {

// Calls work(n) for n = 0 .. count - 1, each once, from several threads, and waits for all.
template <typename Work>
void InParallel(int64_t count, const Work& work) {
  const auto hardware = static_cast<int64_t>(std::max(1u, std::thread::hardware_concurrency()));
  std::atomic<int64_t> next = 0;
  const auto loop = [&] {
    for (int64_t n = next++; n < count; n = next++) work(n);
  };
  std::vector<std::thread> threads;
  for (int64_t n = 1; n < std::min(count, hardware); ++n) threads.emplace_back(loop);
  loop();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_IN_PARALLEL_H_
