#include "client/load/engine/latency_histogram.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

TEST(LatencyHistogramTest, EmptyIsZero) {
  const LatencyHistogram histogram;
  EXPECT_EQ(histogram.count(), 0);
  EXPECT_EQ(histogram.Percentile(50), absl::ZeroDuration());
  EXPECT_EQ(histogram.max(), absl::ZeroDuration());
  EXPECT_EQ(histogram.min(), absl::ZeroDuration());
  EXPECT_EQ(histogram.Mean(), absl::ZeroDuration());
  EXPECT_EQ(histogram.StandardDeviation(), absl::ZeroDuration());
  EXPECT_TRUE(histogram.Buckets().empty());
}

TEST(LatencyHistogramTest, SmallValuesAreExact) {
  LatencyHistogram histogram;
  for (int us = 1; us <= 1000; ++us) histogram.Record(absl::Microseconds(us));
  EXPECT_EQ(histogram.count(), 1000);
  EXPECT_EQ(histogram.Percentile(0), absl::Microseconds(1));
  EXPECT_EQ(histogram.Percentile(50), absl::Microseconds(500));
  EXPECT_EQ(histogram.Percentile(90), absl::Microseconds(900));
  EXPECT_EQ(histogram.Percentile(99), absl::Microseconds(990));
  EXPECT_EQ(histogram.Percentile(99.9), absl::Microseconds(999));
  EXPECT_EQ(histogram.Percentile(100), absl::Microseconds(1000));
  EXPECT_EQ(histogram.Mean(), absl::Nanoseconds(500500));
}

TEST(LatencyHistogramTest, KeepsThreeDigitsOverTheWholeRange) {
  for (int64_t us = 1; us < 120'000'000; us = us * 11 / 10 + 1) {
    LatencyHistogram histogram;
    histogram.Record(absl::Microseconds(us));
    // The largest recorded value bounds the answer from above: put it out of the way.
    histogram.Record(absl::Seconds(120));
    const double reported = absl::ToDoubleMicroseconds(histogram.Percentile(50));
    EXPECT_GE(reported, static_cast<double>(us));
    EXPECT_LE(reported, static_cast<double>(us) * 1.001) << us;
  }
}

// The least value that at least `percent` % of the sorted ones do not exceed.
absl::Duration ExactPercentile(const std::vector<absl::Duration>& sorted, double percent) {
  const double rank = std::ceil(percent / 100 * static_cast<double>(sorted.size()) - 1e-6);
  return sorted[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

void ExpectAgreesWithSortedValues(LatencyHistogram::Precision precision, double width) {
  std::mt19937_64 random(3);
  std::lognormal_distribution<double> nanoseconds(15, 3);
  std::vector<absl::Duration> values;
  LatencyHistogram histogram(precision);
  for (int n = 0; n < 10000; ++n) {
    values.push_back(absl::Nanoseconds(std::min(nanoseconds(random), 100e9)));
    histogram.Record(values.back());
  }
  std::sort(values.begin(), values.end());
  for (const double percent : {0.0, 1.0, 10.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0}) {
    const absl::Duration exact = ExactPercentile(values, percent);
    const absl::Duration reported = histogram.Percentile(percent);
    EXPECT_GE(reported, exact) << percent;
    EXPECT_LE(reported, exact + std::max(exact * width, absl::Microseconds(1))) << percent;
  }
}

TEST(LatencyHistogramTest, AgreesWithSortedValues) {
  ExpectAgreesWithSortedValues(LatencyHistogram::Precision::kFine, 1.0 / 1024);
  ExpectAgreesWithSortedValues(LatencyHistogram::Precision::kCoarse, 1.0 / 64);
}

TEST(LatencyHistogramTest, MomentsAreThoseOfTheValues) {
  LatencyHistogram histogram;
  for (const int us : {200, 400, 400, 400, 500, 500, 700, 900}) {
    histogram.Record(absl::Microseconds(us));
  }
  EXPECT_EQ(histogram.Mean(), absl::Microseconds(500));
  EXPECT_NEAR(absl::ToDoubleMicroseconds(histogram.StandardDeviation()), 200, 1e-6);
  EXPECT_EQ(histogram.min(), absl::Microseconds(200));
  EXPECT_EQ(histogram.max(), absl::Microseconds(900));
}

TEST(LatencyHistogramTest, BucketsHoldEveryValueBelowTheirEnd) {
  LatencyHistogram histogram;
  for (const absl::Duration latency : {absl::Nanoseconds(2500), absl::Microseconds(3),
                                       absl::Nanoseconds(2'049'900), absl::Seconds(7)}) {
    histogram.Record(latency);
  }
  const std::vector<LatencyHistogram::Bucket> buckets = histogram.Buckets();
  ASSERT_EQ(buckets.size(), 3u);
  EXPECT_EQ(buckets[0].most, absl::Microseconds(3));
  EXPECT_EQ(buckets[0].count, 2);
  EXPECT_EQ(buckets[1].most, absl::Microseconds(2051));
  EXPECT_EQ(buckets[1].count, 1);
  EXPECT_GE(buckets[2].most, absl::Seconds(7));
  EXPECT_EQ(buckets[2].count, 1);
}

TEST(LatencyHistogramTest, BucketsAreContiguousWhereTheirWidthDoubles) {
  for (const auto precision :
       {LatencyHistogram::Precision::kFine, LatencyHistogram::Precision::kCoarse}) {
    LatencyHistogram histogram(precision);
    for (int us = 1; us <= 20000; ++us) histogram.Record(absl::Microseconds(us));
    int64_t below = 0;
    for (const LatencyHistogram::Bucket& bucket : histogram.Buckets()) {
      below += bucket.count;
      // All values up to a bucket's end, and no other, are in it or before it.
      EXPECT_EQ(std::min<int64_t>(absl::ToInt64Microseconds(bucket.most), 20000), below);
    }
  }
}

TEST(LatencyHistogramTest, OutsideTheRangeCountsAsItsEndsAndMaxIsExact) {
  LatencyHistogram histogram;
  histogram.Record(absl::ZeroDuration());
  histogram.Record(absl::Seconds(500));
  EXPECT_EQ(histogram.count(), 2);
  EXPECT_LE(histogram.Percentile(50), absl::Microseconds(1));
  EXPECT_EQ(histogram.max(), absl::Seconds(500));
  EXPECT_GE(histogram.Percentile(100), absl::Seconds(120));
}

TEST(LatencyHistogramTest, MergeWithAnEmptyOneChangesNothing) {
  LatencyHistogram histogram, empty;
  histogram.Record(absl::Milliseconds(5));
  histogram.Merge(empty);
  EXPECT_EQ(histogram.count(), 1);
  EXPECT_EQ(histogram.min(), absl::Milliseconds(5));
  empty.Merge(histogram);
  EXPECT_EQ(empty.Percentile(50), absl::Milliseconds(5));
}

TEST(LatencyHistogramTest, MergeIsTheSameAsRecordingEverythingInOne) {
  LatencyHistogram all;
  LatencyHistogram parts[2];
  for (int n = 1; n < 5000; ++n) {
    const absl::Duration latency = absl::Microseconds(n * n);
    all.Record(latency);
    parts[n % 2].Record(latency);
  }
  parts[0].Merge(parts[1]);
  EXPECT_EQ(parts[0].count(), all.count());
  EXPECT_EQ(parts[0].max(), all.max());
  EXPECT_EQ(parts[0].min(), all.min());
  EXPECT_EQ(parts[0].Mean(), all.Mean());
  EXPECT_NEAR(absl::ToDoubleSeconds(parts[0].StandardDeviation()),
              absl::ToDoubleSeconds(all.StandardDeviation()), 1e-9);
  for (const double percent : {0.0, 10.0, 50.0, 99.0, 100.0}) {
    EXPECT_EQ(parts[0].Percentile(percent), all.Percentile(percent));
  }
}

}  // namespace
}  // namespace flashbias::client
