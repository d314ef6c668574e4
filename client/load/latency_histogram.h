// Latencies from 1 us to 120 s to three significant digits, in a fixed amount of memory.
//
// Log-linear buckets: each power of two of microseconds is cut into 1024 equal parts, so a bucket
// is at most 1/1024 of its value wide. Thread-safety: none; give each thread its own and merge.
#ifndef FLASHBIAS_CLIENT_LOAD_LATENCY_HISTOGRAM_H_
#define FLASHBIAS_CLIENT_LOAD_LATENCY_HISTOGRAM_H_

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace flashbias::client {

class LatencyHistogram {
 public:
  LatencyHistogram();

  // Values outside the range count as its ends; max() is exact all the same.
  void Record(absl::Duration latency);
  void Merge(const LatencyHistogram& other);

  int64_t count() const { return count_; }
  // Zero when nothing was recorded.
  absl::Duration max() const { return max_; }
  absl::Duration Mean() const;
  // The least value that at least `percent` % of the recorded ones do not exceed, up to a bucket's
  // width, never above max(). Zero when nothing was recorded. REQUIRES: 0 <= percent <= 100.
  absl::Duration Percentile(double percent) const;

 private:
  std::vector<int64_t> buckets_;
  int64_t count_ = 0;
  absl::Duration sum_;
  absl::Duration max_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_LATENCY_HISTOGRAM_H_
