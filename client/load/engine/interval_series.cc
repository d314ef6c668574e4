#include "client/load/engine/interval_series.h"

#include <algorithm>
#include <utility>

namespace flashbias::client {

void IntervalSeries::Part::Merge(const Part& other) {
  succeeded += other.succeeded;
  failed += other.failed;
  bytes += other.bytes;
  latency.Merge(other.latency);
}

void IntervalSeries::RecordSuccess(absl::Duration intended, absl::Duration latency, int64_t bytes) {
  Part& part = At(intended);
  ++part.succeeded;
  part.bytes += bytes;
  part.latency.Record(latency);
}

void IntervalSeries::RecordFailure(absl::Duration intended) { ++At(intended).failed; }

void IntervalSeries::Merge(const IntervalSeries& other) {
  // A part of a shorter length lies in one of ours. Longer ones reach so far that ours become as
  // long by the last of them.
  for (size_t n = 0; n < other.parts_.size(); ++n) {
    At(static_cast<int64_t>(n) * other.length_).Merge(other.parts_[n]);
  }
}

std::vector<Interval> IntervalSeries::Intervals(absl::Duration span) const {
  // The end may be long after the last request was to be sent.
  if (span > static_cast<int64_t>(kMostIntervals) * length_) {
    IntervalSeries longer = *this;
    longer.DoubleLength();
    return longer.Intervals(span);
  }
  std::vector<Interval> intervals;
  for (size_t n = 0; n < parts_.size() || static_cast<int64_t>(n) * length_ < span; ++n) {
    const Part part = n < parts_.size() ? parts_[n] : Part();
    const absl::Duration start = static_cast<int64_t>(n) * length_;
    intervals.push_back({.start = start,
                         .length = start < span ? std::min(length_, span - start) : length_,
                         .offered = part.succeeded + part.failed,
                         .succeeded = part.succeeded,
                         .failed = part.failed,
                         .bytes = part.bytes,
                         .p50 = part.latency.Percentile(50),
                         .p99 = part.latency.Percentile(99),
                         .max = part.latency.max()});
  }
  return intervals;
}

std::vector<Third> IntervalSeries::Thirds(absl::Duration span) const {
  absl::Duration rest;
  const int64_t each = absl::IDivDuration(span, length_, &rest) / 3;
  if (each == 0) return {};
  std::vector<Third> thirds;
  for (int64_t third = 0; third < 3; ++third) {
    Part all;
    for (int64_t n = third * each; n < (third + 1) * each; ++n) {
      if (n < static_cast<int64_t>(parts_.size())) all.Merge(parts_[n]);
    }
    thirds.push_back({.length = each * length_,
                      .offered = all.succeeded + all.failed,
                      .succeeded = all.succeeded,
                      .p50 = all.latency.Percentile(50),
                      .p90 = all.latency.Percentile(90)});
  }
  return thirds;
}

IntervalSeries::Part& IntervalSeries::At(absl::Duration intended) {
  absl::Duration rest;
  const absl::Duration time = std::max(intended, absl::ZeroDuration());
  while (absl::IDivDuration(time, length_, &rest) >= static_cast<int64_t>(kMostIntervals)) {
    DoubleLength();
  }
  const auto index = static_cast<size_t>(absl::IDivDuration(time, length_, &rest));
  if (index >= parts_.size()) parts_.resize(index + 1);
  return parts_[index];
}

void IntervalSeries::DoubleLength() {
  length_ *= 2;
  for (size_t n = 0; n < parts_.size(); ++n) {
    if (n % 2 == 1) {
      parts_[n / 2].Merge(parts_[n]);
    } else if (n > 0) {
      parts_[n / 2] = std::move(parts_[n]);
    }
  }
  parts_.resize((parts_.size() + 1) / 2);
}

}  // namespace flashbias::client
