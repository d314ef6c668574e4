#include "client/load/engine/interval_series.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

constexpr absl::Duration kBase = IntervalSeries::kBaseLength;

void ExpectNoGaps(const std::vector<Interval>& intervals, absl::Duration span) {
  absl::Duration end;
  for (const Interval& interval : intervals) {
    EXPECT_EQ(interval.start, end);
    end += interval.length;
  }
  EXPECT_EQ(end, span);
}

TEST(IntervalSeriesTest, CountsWhereRequestsWereIntended) {
  IntervalSeries series;
  series.RecordSuccess(absl::ZeroDuration(), absl::Milliseconds(400), 10);
  series.RecordSuccess(kBase - absl::Nanoseconds(1), absl::Milliseconds(2), 10);
  series.RecordFailure(kBase);
  series.RecordSuccess(3 * kBase, absl::Milliseconds(3), 7);
  const auto intervals = series.Intervals(absl::Milliseconds(900));
  ASSERT_EQ(intervals.size(), 4u);
  ExpectNoGaps(intervals, absl::Milliseconds(900));
  EXPECT_EQ(intervals[0].offered, 2);
  EXPECT_EQ(intervals[0].succeeded, 2);
  EXPECT_EQ(intervals[0].bytes, 20);
  EXPECT_EQ(intervals[0].max, absl::Milliseconds(400));
  EXPECT_LT(intervals[0].p50, absl::Milliseconds(3));
  EXPECT_EQ(intervals[0].p99, absl::Milliseconds(400));
  EXPECT_EQ(intervals[1].offered, 1);
  EXPECT_EQ(intervals[1].failed, 1);
  EXPECT_EQ(intervals[1].p50, absl::ZeroDuration());
  EXPECT_EQ(intervals[2].offered, 0);
  EXPECT_EQ(intervals[3].succeeded, 1);
  EXPECT_EQ(intervals[3].length, absl::Milliseconds(150));
}

TEST(IntervalSeriesTest, LongRunsHaveLongerIntervals) {
  IntervalSeries series;
  // 1000 s, at ten requests a second.
  for (int n = 0; n < 10000; ++n) {
    series.RecordSuccess(n * absl::Milliseconds(100), absl::Microseconds(n + 1), 1);
  }
  const auto intervals = series.Intervals(absl::Seconds(1000));
  EXPECT_LE(intervals.size(), IntervalSeries::kMostIntervals);
  EXPECT_EQ(intervals[0].length, absl::Seconds(4));
  ExpectNoGaps(intervals, absl::Seconds(1000));
  int64_t bytes = 0;
  for (size_t n = 0; n < intervals.size(); ++n) {
    EXPECT_EQ(intervals[n].succeeded, 40) << n;
    EXPECT_EQ(intervals[n].max, absl::Microseconds(40 * (n + 1)));
    bytes += intervals[n].bytes;
  }
  EXPECT_EQ(bytes, 10000);
}

TEST(IntervalSeriesTest, MergesSeriesOfDifferentLengths) {
  for (const bool long_first : {false, true}) {
    IntervalSeries both[2];
    IntervalSeries& longer = both[long_first ? 0 : 1];
    IntervalSeries& shorter = both[long_first ? 1 : 0];
    longer.RecordFailure(absl::Seconds(140));
    for (int n = 0; n < 8; ++n) shorter.RecordSuccess(n * kBase, absl::Milliseconds(1), 1);
    both[0].Merge(both[1]);
    const auto intervals = both[0].Intervals(absl::Seconds(140));
    EXPECT_EQ(intervals[0].length, 2 * kBase);
    for (int n = 0; n < 4; ++n) EXPECT_EQ(intervals[n].succeeded, 2);
    EXPECT_EQ(intervals[280].failed, 1);
  }
}

TEST(IntervalSeriesTest, ALateEndMakesIntervalsLongerAndNotMore) {
  IntervalSeries series;
  series.RecordSuccess(kBase, absl::Seconds(190), 7);
  series.RecordFailure(absl::Seconds(70));
  const absl::Duration end = absl::Seconds(191);
  const auto intervals = series.Intervals(end);
  ASSERT_LE(intervals.size(), IntervalSeries::kMostIntervals);
  EXPECT_EQ(intervals.back().start + intervals.back().length, end);
  EXPECT_EQ(intervals[0].bytes, 7);
  EXPECT_EQ(intervals[70].failed, 1);
}

TEST(IntervalSeriesTest, ThirdsAreOfOneLength) {
  IntervalSeries series;
  EXPECT_TRUE(series.Thirds(3 * kBase - absl::Nanoseconds(1)).empty());
  for (int n = 0; n < 11; ++n) {
    series.RecordSuccess(n * kBase, absl::Milliseconds(n < 3 ? 1 : 2), 1);
    series.RecordFailure(n * kBase);
  }
  const auto thirds = series.Thirds(11 * kBase);
  ASSERT_EQ(thirds.size(), 3u);
  for (const Third& third : thirds) {
    EXPECT_EQ(third.length, 3 * kBase);
    EXPECT_EQ(third.offered, 6);
    EXPECT_EQ(third.succeeded, 3);
    EXPECT_GE(third.p90, third.p50);
  }
  EXPECT_LT(thirds[0].p50, absl::Microseconds(1100));
  EXPECT_GE(thirds[1].p50, absl::Milliseconds(2));
}

}  // namespace
}  // namespace flashbias::client
