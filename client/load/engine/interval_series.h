// A run cut into equal intervals, whose length doubles when there would be too many of them.
//
// Times are from the end of the warm-up. Thread-safety: none; give each thread its own and merge.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_INTERVAL_SERIES_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_INTERVAL_SERIES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "client/load/engine/latency_histogram.h"
#include "client/load/engine/load_result.h"

namespace flashbias::client {

class IntervalSeries {
 public:
  static constexpr absl::Duration kBaseLength = absl::Milliseconds(250);
  static constexpr size_t kMostIntervals = 300;

  // One request that was to be sent at `intended`.
  void RecordSuccess(absl::Duration intended, absl::Duration latency, int64_t bytes);
  void RecordFailure(absl::Duration intended);
  void Merge(const IntervalSeries& other);

  // Up to `span`, the end of the run; at most kMostIntervals.
  std::vector<Interval> Intervals(absl::Duration span) const;
  // Of what lies wholly before `span`; up to two intervals at the end may be left out. Empty: there
  // are fewer than three.
  std::vector<Third> Thirds(absl::Duration span) const;

 private:
  struct Part {
    int64_t succeeded = 0;
    int64_t failed = 0;
    int64_t bytes = 0;
    LatencyHistogram latency{LatencyHistogram::Precision::kCoarse};

    void Merge(const Part& other);
  };

  Part& At(absl::Duration intended);
  void DoubleLength();

  absl::Duration length_ = kBaseLength;
  std::vector<Part> parts_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_INTERVAL_SERIES_H_
