// kernels/alibi.h against Press et al.'s definition.
#include "kernels/alibi.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;

// get_slopes of the paper's reference implementation, as it is written there.
std::vector<double> GetSlopes(int n) {
  const double log2n = std::log2(n);
  if (log2n == std::floor(log2n)) {
    const double start = std::pow(2.0, -std::pow(2.0, -(log2n - 3)));
    std::vector<double> slopes;
    for (int i = 0; i < n; ++i) slopes.push_back(start * std::pow(start, i));
    return slopes;
  }
  const int closest = 1 << static_cast<int>(std::floor(log2n));
  std::vector<double> slopes = GetSlopes(closest);
  const std::vector<double> more = GetSlopes(2 * closest);
  for (int i = 0; static_cast<int>(slopes.size()) < n; i += 2) slopes.push_back(more[i]);
  return slopes;
}

TEST(StandardAlibiSlopesTest, AgreesWithThePaperForEveryHeadCount) {
  for (int heads = 1; heads <= 64; ++heads) {
    const std::vector<float> slopes = StandardAlibiSlopes(heads);
    const std::vector<double> expected = GetSlopes(heads);
    ASSERT_EQ(slopes.size(), expected.size());
    for (int h = 0; h < heads; ++h) {
      EXPECT_NEAR(static_cast<double>(slopes[h]), expected[h], 1e-7 * expected[h])
          << "head " << h << " of " << heads;
    }
  }
}

TEST(StandardAlibiSlopesTest, EightHeads) {
  EXPECT_THAT(StandardAlibiSlopes(8),
              ElementsAre(0x1p-1f, 0x1p-2f, 0x1p-3f, 0x1p-4f, 0x1p-5f, 0x1p-6f, 0x1p-7f, 0x1p-8f));
}

TEST(StandardAlibiSlopesTest, SixHeadsTakeTwoFromEight) {
  EXPECT_THAT(StandardAlibiSlopes(6),
              ElementsAre(0x1p-2f, 0x1p-4f, 0x1p-6f, 0x1p-8f, 0x1p-1f, 0x1p-3f));
}

TEST(StandardAlibiSlopesTest, TwelveHeadsTakeFourFromSixteen) {
  const std::vector<float> slopes = StandardAlibiSlopes(12);
  ASSERT_EQ(slopes.size(), 12u);
  EXPECT_THAT(std::vector<float>(slopes.begin() + 8, slopes.end()),
              ElementsAre(FloatEq(std::exp2f(-0.5f)), FloatEq(std::exp2f(-1.5f)),
                          FloatEq(std::exp2f(-2.5f)), FloatEq(std::exp2f(-3.5f))));
}

TEST(StandardAlibiSlopesTest, FiftyHeadsTakeEighteenFromSixtyFour) {
  const std::vector<float> slopes = StandardAlibiSlopes(50);
  ASSERT_EQ(slopes.size(), 50u);
  EXPECT_THAT(slopes[0], FloatEq(std::exp2f(-0.25f)));
  EXPECT_THAT(slopes[31], FloatEq(0x1p-8f));
  EXPECT_THAT(slopes[32], FloatEq(std::exp2f(-0.125f)));
  EXPECT_THAT(slopes[49], FloatEq(std::exp2f(-35 * 0.125f)));
}

TEST(SeedAlibiSlopesTest, OnePowerPerHead) {
  const std::vector<float> slopes = SeedAlibiSlopes(50);
  ASSERT_EQ(slopes.size(), 50u);
  EXPECT_THAT(slopes[0], FloatEq(std::exp2f(-0.16f)));
  EXPECT_THAT(slopes[24], FloatEq(0x1p-4f));
  EXPECT_THAT(slopes[49], FloatEq(0x1p-8f));
}

TEST(AlibiSlopesTest, NoHeadsGiveNoSlopes) {
  EXPECT_TRUE(StandardAlibiSlopes(0).empty());
  EXPECT_TRUE(SeedAlibiSlopes(0).empty());
}

}  // namespace
}  // namespace flashbias
