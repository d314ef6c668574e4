#include "client/load/engine/rate_search.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

// Drives the search against a server that keeps up to `capacity`; the rates that it drove.
std::vector<double> Drive(RateSearch& search, double capacity) {
  std::vector<double> rates;
  while (search.Next().has_value()) {
    rates.push_back(*search.Next());
    search.Report(rates.back() <= capacity);
  }
  return rates;
}

TEST(RateSearchTest, FindsTheCapacity) {
  for (const double capacity : {10.0, 11.0, 37.5, 173.0, 9999.0}) {
    RateSearch search({.first_rate = 10});
    const std::vector<double> rates = Drive(search, capacity);
    ASSERT_TRUE(search.best().has_value() && search.bound().has_value());
    EXPECT_LE(*search.best(), capacity);
    EXPECT_GT(*search.bound(), capacity);
    EXPECT_LE(*search.bound(), *search.best() * 1.05 * (1 + 1e-12));
    EXPECT_LE(rates.size(), 25u);
    EXPECT_EQ(rates[0], 10);
  }
}

TEST(RateSearchTest, StepsUpByTheFactorAndThenBisects) {
  RateSearch search({.first_rate = 100, .step_factor = 2, .precision = 0.2});
  EXPECT_EQ(Drive(search, 500), (std::vector<double>{100, 200, 400, 800, 600, 500}));
  EXPECT_EQ(search.best(), 500);
  EXPECT_EQ(search.bound(), 600);
}

TEST(RateSearchTest, EndsAtTheHighestRate) {
  RateSearch search({.first_rate = 100, .step_factor = 2, .max_rate = 500});
  EXPECT_EQ(Drive(search, 1e9), (std::vector<double>{100, 200, 400, 500}));
  EXPECT_EQ(search.best(), 500);
  EXPECT_EQ(search.bound(), std::nullopt);

  RateSearch above({.first_rate = 1000, .max_rate = 500});
  EXPECT_EQ(Drive(above, 1e9), (std::vector<double>{500}));
}

TEST(RateSearchTest, StepsDownFromTheHighestRateWhereTheFirstIsFarAbove) {
  RateSearch search({.first_rate = 1000, .step_factor = 2, .max_rate = 8});
  EXPECT_EQ(Drive(search, 2)[1], 2);
  EXPECT_EQ(search.best(), 2);
}

TEST(RateSearchTest, AFirstRateThatFailsIsSteppedDownFrom) {
  RateSearch search({.first_rate = 1000, .step_factor = 2});
  const std::vector<double> rates = Drive(search, 100);
  EXPECT_EQ(std::vector<double>(rates.begin(), rates.begin() + 3),
            (std::vector<double>{1000, 250, 62.5}));
  EXPECT_LE(*search.best(), 100);
  EXPECT_GT(*search.bound(), 100);
  EXPECT_LE(*search.bound(), *search.best() * 1.05 * (1 + 1e-12));
}

TEST(RateSearchTest, WhereNoRateMeetsItThereIsNoBest) {
  RateSearch search({.first_rate = 1000, .step_factor = 2});
  EXPECT_EQ(Drive(search, 0), (std::vector<double>{1000, 250, 62.5, 15.625}));
  EXPECT_EQ(search.best(), std::nullopt);
  EXPECT_EQ(search.bound(), 15.625);
}

TEST(RateSearchTest, EndsAfterItsSteps) {
  RateSearch search({.first_rate = 1, .step_factor = 1.01, .max_steps = 7});
  EXPECT_EQ(Drive(search, 1e9).size(), 7u);
  EXPECT_EQ(search.bound(), std::nullopt);
  EXPECT_NEAR(*search.best(), std::pow(1.01, 6), 1e-12);
}

TEST(RateSearchTest, NoiseAtTheCapacityCostsAccuracyAndNotTheEnd) {
  constexpr double kCapacity = 300;
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    // Between 80 % and 120 % of the capacity chance decides.
    std::uniform_real_distribution<double> noisy_capacity(0.8 * kCapacity, 1.2 * kCapacity);
    RateSearch search({.first_rate = 50});
    int steps = 0;
    std::vector<double> met, missed;
    while (search.Next().has_value()) {
      const double rate = *search.Next();
      (rate <= noisy_capacity(random) ? met : missed).push_back(rate);
      search.Report(!met.empty() && met.back() == rate);
      ASSERT_LT(++steps, 40);
    }
    ASSERT_TRUE(search.best().has_value() && search.bound().has_value());
    EXPECT_EQ(*search.best(), met.back());
    EXPECT_EQ(*search.bound(), missed.back());
    EXPECT_GE(*search.best(), 0.7 * kCapacity);
    EXPECT_LE(*search.bound(), 1.3 * kCapacity);
    EXPECT_GT(*search.bound(), *search.best());
    EXPECT_LE(*search.bound(), *search.best() * 1.05 * (1 + 1e-12));
  }
}

}  // namespace
}  // namespace flashbias::client
