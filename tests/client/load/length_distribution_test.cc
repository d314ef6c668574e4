#include "client/load/requests/length_distribution.h"

#include <cmath>
#include <map>
#include <string>

#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using Kind = LengthDistribution::Kind;

constexpr int kDraws = 20000;

// Over equally spaced quantiles.
struct Moments {
  double mean = 0;
  double deviation = 0;
};
Moments MomentsOf(const LengthDistribution& lengths, double (*of)(double)) {
  double sum = 0;
  double squares = 0;
  for (int n = 0; n < kDraws; ++n) {
    const double value = of(static_cast<double>(lengths.Draw((n + 0.5) / kDraws)));
    sum += value;
    squares += value * value;
  }
  const double mean = sum / kDraws;
  return {.mean = mean, .deviation = std::sqrt(squares / kDraws - mean * mean)};
}

TEST(LengthDistributionTest, AFixedLengthIsThatAlways) {
  const LengthDistribution lengths = {.kind = Kind::kFixed, .min = 77};
  EXPECT_EQ(lengths.Draw(0), 77);
  EXPECT_EQ(lengths.Draw(0.999), 77);
  EXPECT_EQ(lengths.Largest(), 77);
  EXPECT_EQ(lengths.Describe(), "77");
}

TEST(LengthDistributionTest, UniformLengthsAreEquallyLikelyWithBothEnds) {
  const LengthDistribution lengths = {.kind = Kind::kUniform, .min = 3, .max = 12};
  std::map<int64_t, int> counts;
  for (int n = 0; n < kDraws; ++n) ++counts[lengths.Draw((n + 0.5) / kDraws)];
  ASSERT_EQ(counts.size(), 10u);
  for (const auto& [length, count] : counts) EXPECT_EQ(count, kDraws / 10) << length;
  EXPECT_EQ(counts.begin()->first, 3);
  EXPECT_EQ(counts.rbegin()->first, 12);
  EXPECT_EQ(lengths.Draw(std::nextafter(1.0, 0.0)), 12);
  EXPECT_EQ(lengths.Largest(), 12);
}

TEST(LengthDistributionTest, LogNormalLengthsHaveTheirMedianAndSpread) {
  const LengthDistribution lengths = {
      .kind = Kind::kLogNormal, .min = 1, .max = 1 << 20, .median = 900, .sigma = 0.7};
  EXPECT_EQ(lengths.Draw(0.5), 900);
  // One sigma up and down: 0.8413 of a normal distribution.
  EXPECT_NEAR(static_cast<double>(lengths.Draw(0.841345)), 900 * std::exp(0.7), 1);
  EXPECT_NEAR(static_cast<double>(lengths.Draw(0.158655)), 900 * std::exp(-0.7), 1);
  const Moments logs = MomentsOf(lengths, std::log);
  EXPECT_NEAR(logs.mean, std::log(900.0), 1e-3);
  EXPECT_NEAR(logs.deviation, 0.7, 1e-3);
  const Moments plain = MomentsOf(lengths, [](double length) { return length; });
  EXPECT_NEAR(plain.mean, 900 * std::exp(0.7 * 0.7 / 2), 2);
}

TEST(LengthDistributionTest, LogNormalLengthsBeyondTheEndsBecomeTheEnds) {
  const LengthDistribution lengths = {
      .kind = Kind::kLogNormal, .min = 600, .max = 1000, .median = 900, .sigma = 1};
  std::map<int64_t, int> counts;
  for (int n = 0; n < kDraws; ++n) ++counts[lengths.Draw((n + 0.5) / kDraws)];
  EXPECT_EQ(counts.begin()->first, 600);
  EXPECT_EQ(counts.rbegin()->first, 1000);
  // P(length <= 600.5) and P(length > 999.5) of the distribution without ends.
  EXPECT_NEAR(counts[600], kDraws * 0.3429, kDraws * 0.001);
  EXPECT_NEAR(counts[1000], kDraws * 0.4583, kDraws * 0.001);
}

TEST(LengthDistributionTest, ChoicesFollowTheirWeights) {
  LengthDistribution lengths = {
      .kind = Kind::kChoice, .values = {512, 64, 2048}, .weights = {3, 6, 1}};
  std::map<int64_t, int> counts;
  for (int n = 0; n < kDraws; ++n) ++counts[lengths.Draw((n + 0.5) / kDraws)];
  EXPECT_EQ(counts[512], kDraws * 3 / 10);
  EXPECT_EQ(counts[64], kDraws * 6 / 10);
  EXPECT_EQ(counts[2048], kDraws / 10);
  EXPECT_EQ(lengths.Largest(), 2048);
  EXPECT_EQ(lengths.Describe(), "512, 64, 2048");
  lengths.weights.clear();
  EXPECT_EQ(lengths.Draw(0.3), 512);
  EXPECT_EQ(lengths.Draw(0.4), 64);
  EXPECT_EQ(lengths.Draw(0.9999), 2048);
}

TEST(LengthDistributionTest, WhatIsOutOfRangeIsRefusedByName) {
  const auto message = [](const LengthDistribution& lengths) {
    return std::string(lengths.Validate("x").message());
  };
  const LengthDistribution good = {
      .kind = Kind::kLogNormal, .min = 1, .max = 9, .median = 4, .sigma = 1};
  EXPECT_EQ(message(good), "");
  EXPECT_EQ(message({.min = 0}), "x is 0; accepted: 1 to 16777216");
  EXPECT_EQ(message({.kind = Kind::kUniform, .min = 0, .max = 4}),
            "x.min is 0; accepted: 1 to 16777216");
  EXPECT_EQ(message({.kind = Kind::kUniform, .min = 5, .max = 4}),
            "x.max is 4; accepted: 5 to 16777216");
  LengthDistribution bad = good;
  bad.median = 0.5;
  EXPECT_EQ(message(bad), "x.median is 0.5; accepted: 1 to 16777216");
  bad = good;
  bad.sigma = 0;
  EXPECT_EQ(message(bad), "x.sigma is 0; accepted: above 0, up to 10");
  bad.sigma = std::nan("");
  EXPECT_EQ(message(bad), "x.sigma is nan; accepted: above 0, up to 10");
  EXPECT_EQ(message({.kind = Kind::kChoice}), "x.values is empty; accepted: at least one length");
  EXPECT_EQ(message({.kind = Kind::kChoice, .values = {4, 0}}),
            "x.values[1] is 0; accepted: 1 to 16777216");
  EXPECT_EQ(message({.kind = Kind::kChoice, .values = {4, 5}, .weights = {1}}),
            "x.weights has 1 entries; accepted: one for each of the 2 values");
  EXPECT_EQ(message({.kind = Kind::kChoice, .values = {4, 5}, .weights = {1, -1}}),
            "x.weights[1] is -1; accepted: positive numbers");
}

}  // namespace
}  // namespace flashbias::client
