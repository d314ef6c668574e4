// Latencies from 1 us to 120 s to three significant digits, in a fixed amount of memory.
//
// Log-linear buckets: each power of two of microseconds is cut into 1024 equal parts (kCoarse: 64),
// so a bucket is at most 1/1024 (1/64) of its value, or 1 us, wide. An empty one is small: the 150
// KB (11 KB) of buckets come with the first value. Thread-safety: none; give each thread its
// own and merge.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_LATENCY_HISTOGRAM_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_LATENCY_HISTOGRAM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace flashbias::client {

class LatencyHistogram {
 public:
  enum class Precision { kFine, kCoarse };
  struct Bucket {
    absl::Duration most;  // the largest value that it takes
    int64_t count;        // above 0
  };

  LatencyHistogram() : LatencyHistogram(Precision::kFine) {}
  explicit LatencyHistogram(Precision precision);

  // Values outside the range count as its ends; max() is exact all the same.
  void Record(absl::Duration latency);
  // REQUIRES: the same precision.
  void Merge(const LatencyHistogram& other);

  int64_t count() const { return count_; }
  // Zero when nothing was recorded.
  absl::Duration min() const { return count_ == 0 ? absl::ZeroDuration() : min_; }
  absl::Duration max() const { return max_; }
  absl::Duration Mean() const;
  absl::Duration StandardDeviation() const;
  // The least value that at least `percent` % of the recorded ones do not exceed, up to a bucket's
  // width, never above max(). Zero when nothing was recorded. REQUIRES: 0 <= percent <= 100.
  absl::Duration Percentile(double percent) const;
  // Those that hold something, ascending.
  std::vector<Bucket> Buckets() const;

 private:
  size_t BucketOf(int64_t microseconds) const;
  int64_t UpperEnd(size_t bucket) const;  // microseconds

  int sub_bits_;                  // each power of two has 2^sub_bits_ buckets
  std::vector<int64_t> buckets_;  // empty until something is recorded
  int64_t count_ = 0;
  absl::Duration sum_;
  double sum_of_squares_ = 0;  // of seconds
  absl::Duration min_ = absl::InfiniteDuration();
  absl::Duration max_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_LATENCY_HISTOGRAM_H_
