#include "client/load/engine/arrivals.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<absl::Duration> Draw(const ArrivalOptions& options) {
  const auto arrivals = DrawArrivals(options);
  EXPECT_TRUE(arrivals.ok()) << arrivals.status();
  return arrivals.value_or(std::vector<absl::Duration>());
}

TEST(ArrivalsTest, ConstantGapsAreExact) {
  const auto arrivals =
      Draw({.kind = ArrivalKind::kConstant, .rate = 250, .duration = absl::Seconds(20), .seed = 9});
  ASSERT_EQ(arrivals.size(), 5000u);
  for (int n = 0; n < 5000; ++n) {
    EXPECT_LE(absl::AbsDuration(arrivals[n] - n * absl::Milliseconds(4)), absl::Nanoseconds(1));
  }
}

TEST(ArrivalsTest, PoissonGapsHaveTheMeanAndTheVarianceOfAnExponential) {
  constexpr double kRate = 1000;
  const auto arrivals = Draw({.rate = kRate, .duration = absl::Seconds(200)});
  ASSERT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  EXPECT_LT(arrivals.back(), absl::Seconds(200));
  // The limits are some five standard errors away, and the seed is fixed.
  const auto count = static_cast<double>(arrivals.size());
  EXPECT_NEAR(count, 200 * kRate, 5 * std::sqrt(200 * kRate));
  double sum = 0, squares = 0, above_mean = 0;
  absl::Duration last;
  for (const absl::Duration arrival : arrivals) {
    const double gap = absl::ToDoubleSeconds(arrival - last);
    sum += gap;
    squares += gap * gap;
    above_mean += gap > 1 / kRate ? 1 : 0;
    last = arrival;
  }
  const double mean = sum / count;
  const double variance = squares / count - mean * mean;
  EXPECT_NEAR(mean * kRate, 1, 0.012);
  EXPECT_NEAR(variance * kRate * kRate, 1, 0.035);
  EXPECT_NEAR(above_mean / count, std::exp(-1), 0.006);
}

TEST(ArrivalsTest, TheSeedDecides) {
  const ArrivalOptions options{.rate = 100, .duration = absl::Seconds(10), .seed = 7};
  ArrivalOptions other = options;
  other.seed = 8;
  EXPECT_EQ(Draw(options), Draw(options));
  EXPECT_NE(Draw(options), Draw(other));
}

TEST(ArrivalsTest, EndsAtTheNumberOfRequests) {
  for (const ArrivalKind kind : {ArrivalKind::kPoisson, ArrivalKind::kConstant}) {
    EXPECT_EQ(
        Draw(
            {.kind = kind, .rate = 100, .duration = absl::InfiniteDuration(), .max_requests = 1234})
            .size(),
        1234u);
    EXPECT_LT(
        Draw({.kind = kind, .rate = 10, .duration = absl::Seconds(1), .max_requests = 1000}).size(),
        30u);
  }
}

TEST(ArrivalsTest, Names) {
  EXPECT_EQ(Name(ArrivalKind::kPoisson), "poisson");
  EXPECT_EQ(Name(ArrivalKind::kConstant), "constant");
}

void ExpectRefused(const ArrivalOptions& options, const char* what) {
  const auto arrivals = DrawArrivals(options);
  EXPECT_EQ(arrivals.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(arrivals.status().message()),
              AllOf(HasSubstr(what), HasSubstr("accepted")));
}

TEST(ArrivalsTest, RefusesWhatIsOutOfRange) {
  const absl::Duration second = absl::Seconds(1);
  ExpectRefused({.rate = 0, .duration = second}, "--rate is 0");
  ExpectRefused({.rate = -1, .duration = second}, "--rate is -1");
  ExpectRefused({.rate = 2e7, .duration = second}, "--rate is 2e+07");
  ExpectRefused({.rate = std::numeric_limits<double>::quiet_NaN(), .duration = second}, "--rate");
  ExpectRefused({.rate = 1, .duration = absl::ZeroDuration()}, "--duration is 0");
  ExpectRefused({.rate = 1, .duration = absl::InfiniteDuration()}, "--duration is inf");
  ExpectRefused({.rate = 1, .duration = second, .max_requests = -1}, "--requests is -1");
  ExpectRefused({.rate = 1, .duration = second, .max_requests = 50'000'001}, "--requests");
  ExpectRefused({.rate = 1e6, .duration = absl::Seconds(51)}, "more than 50000000 requests");
}

}  // namespace
}  // namespace flashbias::client
