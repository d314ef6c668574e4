#include "client/load/report/axis.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::ElementsAre;
using Kind = AxisRange::Kind;

std::vector<std::string> Labels(const Axis& axis) {
  std::vector<std::string> labels;
  for (const Axis::Tick& tick : axis.ticks) labels.push_back(tick.label);
  return labels;
}

TEST(AxisTest, StepsOfOneTwoAndFive) {
  EXPECT_THAT(Labels(MakeAxis({.kind = Kind::kCount, .most = 10}, 6)),
              ElementsAre("0", "2", "4", "6", "8", "10"));
  EXPECT_THAT(Labels(MakeAxis({.kind = Kind::kCount, .most = 137}, 5)),
              ElementsAre("0", "50", "100", "150"));
  EXPECT_THAT(Labels(MakeAxis({.kind = Kind::kCount, .most = 0.3}, 5)),
              ElementsAre("0", "0.1", "0.2", "0.3"));
}

TEST(AxisTest, UnitsByMagnitude) {
  const Axis latency = MakeAxis({.kind = Kind::kLatency, .least = 0.002, .most = 0.0078}, 5);
  EXPECT_EQ(latency.unit, "ms");
  EXPECT_THAT(Labels(latency), ElementsAre("0", "2", "4", "6", "8"));
  EXPECT_DOUBLE_EQ(latency.end, 0.008);
  EXPECT_EQ(MakeAxis({.kind = Kind::kLatency, .most = 3e-4}, 5).unit, "µs");
  EXPECT_EQ(MakeAxis({.kind = Kind::kLatency, .most = 3}, 5).unit, "s");
  EXPECT_EQ(MakeAxis({.kind = Kind::kSpan, .most = 60}, 5).unit, "s");
  EXPECT_EQ(MakeAxis({.kind = Kind::kSpan, .most = 3600}, 5).unit, "min");
  EXPECT_EQ(MakeAxis({.kind = Kind::kSpan, .most = 86400}, 5).unit, "h");
  const Axis count = MakeAxis({.kind = Kind::kCount, .most = 25'000}, 6);
  EXPECT_EQ(count.unit, "k");
  EXPECT_THAT(Labels(count), ElementsAre("0", "5", "10", "15", "20", "25"));
}

TEST(AxisTest, LogarithmicWhereLatenciesLieFarApart) {
  const Axis axis = MakeAxis({.kind = Kind::kLatency, .least = 0.0006, .most = 0.8}, 4);
  EXPECT_TRUE(axis.logarithmic);
  EXPECT_DOUBLE_EQ(axis.begin, 0.0005);
  EXPECT_DOUBLE_EQ(axis.end, 1);
  EXPECT_THAT(Labels(axis), ElementsAre("1 ms", "10 ms", "100 ms", "1 s"));
  const Axis all = MakeAxis({.kind = Kind::kLatency, .least = 0.004, .most = 0.19}, 4);
  EXPECT_THAT(Labels(all),
              ElementsAre("2 ms", "5 ms", "10 ms", "20 ms", "50 ms", "100 ms", "200 ms"));
  EXPECT_NEAR(all.At(0.02), 0.5, 1e-9);
  EXPECT_FALSE(MakeAxis({.kind = Kind::kLatency, .least = 0.1, .most = 0.8}, 4).logarithmic);
}

TEST(AxisTest, Nines) {
  EXPECT_THAT(Labels(MakeAxis({.kind = Kind::kNines, .most = 4.3}, 6)),
              ElementsAre("0", "90", "99", "99.9", "99.99"));
  EXPECT_THAT(Labels(MakeAxis({.kind = Kind::kNines, .most = 6}, 4)),
              ElementsAre("0", "99", "99.99", "99.9999"));
}

TEST(AxisTest, ValuesOutsideLieAtTheEnds) {
  const Axis axis = MakeAxis({.kind = Kind::kCount, .most = 10}, 6);
  EXPECT_EQ(axis.At(-5), 0);
  EXPECT_EQ(axis.At(50), 1);
  EXPECT_EQ(axis.At(5), 0.5);
}

TEST(AxisTest, AnyRangeGivesAnAxis) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const Kind kind : {Kind::kSpan, Kind::kLatency, Kind::kCount, Kind::kNines}) {
    for (const double most : {0.0, -1.0, 1e-300, 1e300, kInfinity, std::nan("")}) {
      for (const double least : {0.0, 1e-300, -1.0, kInfinity}) {
        const Axis axis = MakeAxis({.kind = kind, .least = least, .most = most}, 5);
        EXPECT_LT(axis.begin, axis.end);
        EXPECT_GE(axis.ticks.size(), 2u);
        EXPECT_LE(axis.ticks.size(), 12u);
        for (const Axis::Tick& tick : axis.ticks) {
          EXPECT_TRUE(tick.at >= 0 && tick.at <= 1) << tick.at;
          EXPECT_LE(tick.label.size(), 14u) << tick.label;
        }
        const double at = axis.At(1);
        EXPECT_TRUE(at >= 0 && at <= 1) << at;
      }
    }
  }
}

}  // namespace
}  // namespace flashbias::client
