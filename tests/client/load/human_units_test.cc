#include "client/load/report/human_units.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

TEST(HumanUnitsTest, Counts) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(-1234567), "-1,234,567");
  EXPECT_EQ(FormatCount(std::numeric_limits<int64_t>::max()), "9,223,372,036,854,775,807");
}

TEST(HumanUnitsTest, Numbers) {
  EXPECT_EQ(FormatNumber(0), "0");
  EXPECT_EQ(FormatNumber(0.12345), "0.123");
  EXPECT_EQ(FormatNumber(9.999), "10.0");
  EXPECT_EQ(FormatNumber(12.345), "12.3");
  EXPECT_EQ(FormatNumber(123.45), "123");
  EXPECT_EQ(FormatNumber(1234.5), "1,234");
  EXPECT_EQ(FormatNumber(1e-7), "1.00e-07");
  EXPECT_EQ(FormatNumber(1.5e20), "1.5e+20");
  EXPECT_EQ(FormatNumber(std::numeric_limits<double>::infinity()), "-");
  EXPECT_EQ(FormatNumber(std::nan("")), "-");
}

TEST(HumanUnitsTest, Latencies) {
  EXPECT_EQ(FormatLatency(0.0), "0 ms");
  EXPECT_EQ(FormatLatency(13.2e-9), "13.2 ns");
  EXPECT_EQ(FormatLatency(12.3e-6), "12.3 µs");
  EXPECT_EQ(FormatLatency(999.9e-6), "1.00 ms");
  EXPECT_EQ(FormatLatency(absl::Microseconds(2346)), "2.35 ms");
  EXPECT_EQ(FormatLatency(absl::Seconds(90)), "90.0 s");
  EXPECT_EQ(FormatLatency(absl::InfiniteDuration()), "-");
}

TEST(HumanUnitsTest, SpansAndBytes) {
  EXPECT_EQ(FormatSpan(absl::Seconds(30)), "30.0 s");
  EXPECT_EQ(FormatSpan(absl::Minutes(45)), "45.0 min");
  EXPECT_EQ(FormatSpan(absl::Hours(24)), "24.0 h");
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(9'830'400), "9.83 MB");
  EXPECT_EQ(FormatByteRate(2.3e9), "2.30 GB/s");
  EXPECT_EQ(FormatByteRate(std::numeric_limits<double>::infinity()), "-");
}

}  // namespace
}  // namespace flashbias::client
