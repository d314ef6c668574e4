#include "client/load/latency_histogram.h"

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
  EXPECT_EQ(histogram.Mean(), absl::ZeroDuration());
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

TEST(LatencyHistogramTest, AgreesWithSortedValues) {
  std::mt19937_64 random(3);
  std::lognormal_distribution<double> distribution(9, 2);
  std::vector<double> values;
  LatencyHistogram histogram;
  for (int n = 0; n < 10000; ++n) {
    values.push_back(std::floor(std::clamp(distribution(random), 1.0, 1e8)));
    histogram.Record(absl::Microseconds(static_cast<int64_t>(values.back())));
  }
  std::sort(values.begin(), values.end());
  for (const int per_mille : {10, 500, 900, 990, 999}) {
    const double exact = values[static_cast<size_t>(per_mille) * 10 - 1];
    const double reported = absl::ToDoubleMicroseconds(histogram.Percentile(per_mille / 10.0));
    EXPECT_GE(reported, exact);
    EXPECT_LE(reported, exact * 1.001);
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
  EXPECT_EQ(parts[0].Mean(), all.Mean());
  for (const double percent : {0.0, 10.0, 50.0, 99.0, 100.0}) {
    EXPECT_EQ(parts[0].Percentile(percent), all.Percentile(percent));
  }
}

}  // namespace
}  // namespace flashbias::client
