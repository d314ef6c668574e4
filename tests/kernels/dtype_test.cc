// kernels/dtype.h against a slow definition: the value nearest to the input among all 2^16.
#include "kernels/dtype.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace flashbias {
namespace {

// The value of a 16-bit pattern with so many exponent bits, straight from IEEE 754's definition.
double Define(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

struct Format {
  const char* name;
  int exponent_bits;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
};

class HalfTest : public ::testing::TestWithParam<Format> {
 protected:
  // Rounds to nearest, ties to even, by searching all magnitudes.
  uint16_t Nearest(float value) const {
    const auto magnitude = std::fabs(static_cast<double>(value));
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const auto infinity = static_cast<uint16_t>(((1 << GetParam().exponent_bits) - 1)
                                                << (15 - GetParam().exponent_bits));
    // Patterns are ordered as their values are; `above` is the first one that is not below.
    uint16_t low = 0;
    uint16_t high = infinity;
    while (low < high) {
      const auto middle = static_cast<uint16_t>((low + high) / 2);
      if (Value(middle) < magnitude) {
        low = static_cast<uint16_t>(middle + 1);
      } else {
        high = middle;
      }
    }
    const uint16_t above = low;
    if (above == 0 || Value(above) == magnitude) return sign | above;
    const auto below = static_cast<uint16_t>(above - 1);
    const double up = Value(above) - magnitude;
    const double down = magnitude - Value(below);
    if (up == down) return sign | ((above & 1) == 0 ? above : below);
    return sign | (up < down ? above : below);
  }

 private:
  // As Define, but infinity's pattern stands for the next power of two, which is where IEEE 754
  // puts the border of overflow.
  double Value(uint16_t bits) const {
    const int e = GetParam().exponent_bits;
    const double value = Define(bits, e);
    return std::isinf(value) ? std::ldexp(1.0, 1 << (e - 1)) : value;
  }
};

TEST_P(HalfTest, WideningIsExactForEveryPattern) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const auto value = static_cast<double>(GetParam().widen(half));
    const double expected = Define(half, GetParam().exponent_bits);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value)) << bits;
    } else {
      ASSERT_EQ(value, expected) << bits;
      ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
    }
  }
}

TEST_P(HalfTest, EveryPatternSurvivesTheRoundTrip) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const uint16_t back = GetParam().narrow(GetParam().widen(half));
    if (std::isnan(GetParam().widen(half))) {
      ASSERT_TRUE(std::isnan(GetParam().widen(back))) << bits;
      ASSERT_EQ(back & 0x8000, half & 0x8000) << bits;
    } else {
      ASSERT_EQ(back, half);
    }
  }
}

TEST_P(HalfTest, NarrowingRoundsToNearestEven) {
  // Around every representable value and around every midpoint between two of them.
  for (int bits = 0; bits < 0x7fff; ++bits) {
    const auto here = static_cast<double>(GetParam().widen(static_cast<uint16_t>(bits)));
    const auto next = static_cast<double>(GetParam().widen(static_cast<uint16_t>(bits + 1)));
    if (!std::isfinite(here) || !std::isfinite(next)) continue;
    const auto middle = static_cast<float>((here + next) / 2);
    for (const float center : {static_cast<float>(here), middle}) {
      for (const float value :
           {center, std::nextafterf(center, 0.0f), std::nextafterf(center, INFINITY)}) {
        ASSERT_EQ(GetParam().narrow(value), Nearest(value)) << value;
        ASSERT_EQ(GetParam().narrow(-value), Nearest(-value)) << -value;
      }
    }
  }
}

TEST_P(HalfTest, NarrowingAgreesOnBitPatternsOfEverySize) {
  for (uint32_t n = 0; n < 400'000; ++n) {
    const float value = std::bit_cast<float>(n * 10737u);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(GetParam().widen(GetParam().narrow(value))));
    } else {
      ASSERT_EQ(GetParam().narrow(value), Nearest(value)) << value;
    }
  }
}

TEST_P(HalfTest, EndsOfTheRange) {
  const auto infinity = static_cast<uint16_t>(((1 << GetParam().exponent_bits) - 1)
                                              << (15 - GetParam().exponent_bits));
  EXPECT_EQ(GetParam().narrow(INFINITY), infinity);
  EXPECT_EQ(GetParam().narrow(-INFINITY), 0x8000 | infinity);
  EXPECT_EQ(GetParam().narrow(std::numeric_limits<float>::max()), infinity);
  EXPECT_EQ(GetParam().narrow(0.0f), 0);
  EXPECT_EQ(GetParam().narrow(-0.0f), 0x8000);
  EXPECT_EQ(GetParam().narrow(std::numeric_limits<float>::denorm_min()),
            Nearest(std::numeric_limits<float>::denorm_min()));
  EXPECT_TRUE(std::isnan(GetParam().widen(GetParam().narrow(std::nanf("")))));
  // A NaN whose payload lies in the bits that narrowing drops must not become infinity.
  EXPECT_TRUE(std::isnan(GetParam().widen(GetParam().narrow(std::bit_cast<float>(0x7f800001u)))));
}

INSTANTIATE_TEST_SUITE_P(Formats, HalfTest,
                         ::testing::Values(Format{"float16", 5, Float16ToFloat, FloatToFloat16},
                                           Format{"bfloat16", 8, BFloat16ToFloat, FloatToBFloat16}),
                         [](const auto& param) { return std::string(param.param.name); });

TEST(Elements, LoadAndStoreAtOddAddresses) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    std::vector<char> bytes(1 + 3 * SizeOf(dtype));
    for (int n = 0; n < 3; ++n) StoreElement(dtype, bytes.data() + 1, n, 1.5f * (n + 1));
    for (int n = 0; n < 3; ++n) EXPECT_EQ(LoadElement(dtype, bytes.data() + 1, n), 1.5f * (n + 1));
    EXPECT_EQ(bytes[0], 0);
  }
}

}  // namespace
}  // namespace flashbias
