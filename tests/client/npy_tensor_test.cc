#include "client/call/npy_tensor.h"

#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;

template <typename T>
NpyArray Array(NpyType type, const std::vector<T>& values) {
  NpyArray array{.type = type, .shape = {static_cast<int64_t>(values.size())}};
  array.data.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  return array;
}

absl::StatusOr<OwnedTensor> ToTensor(const std::string& name, NpyArray array,
                                     std::optional<DType> wanted) {
  return ToTensor(name, std::move(array), wanted, "--dtype");
}

float At(const OwnedTensor& tensor, int64_t index) {
  return LoadElement(tensor.dtype, tensor.data.data(), index);
}

TEST(NpyTensorTest, AutoKeepsWhatTheFileHolds) {
  const auto f4 = ToTensor("a", Array<float>(NpyType::kFloat32, {1.5f, -2}), std::nullopt);
  ASSERT_TRUE(f4.ok());
  EXPECT_EQ(f4->dtype, DType::kFloat32);
  EXPECT_EQ(At(*f4, 1), -2.0f);
  const auto f2 = ToTensor("a", Array<uint16_t>(NpyType::kFloat16, {0x3c00}), std::nullopt);
  ASSERT_TRUE(f2.ok());
  EXPECT_EQ(f2->dtype, DType::kFloat16);
  EXPECT_EQ(At(*f2, 0), 1.0f);
}

TEST(NpyTensorTest, Float64NeedsAnExplicitDType) {
  const NpyArray array = Array<double>(NpyType::kFloat64, {0.1, 1e-3});
  const auto refused = ToTensor("a.npy", array, std::nullopt);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("a.npy: float64"));
  const auto converted = ToTensor("a.npy", array, DType::kFloat32);
  ASSERT_TRUE(converted.ok());
  EXPECT_EQ(At(*converted, 0), 0.1f);
}

TEST(NpyTensorTest, Uint16IsRawBfloat16) {
  const NpyArray array = Array<uint16_t>(NpyType::kUint16, {0x3f80, 0xc000});
  EXPECT_FALSE(ToTensor("a", array, std::nullopt).ok());
  EXPECT_FALSE(ToTensor("a", array, DType::kFloat32).ok());
  const auto tensor = ToTensor("a", array, DType::kBFloat16);
  ASSERT_TRUE(tensor.ok());
  EXPECT_EQ(At(*tensor, 0), 1.0f);
  EXPECT_EQ(At(*tensor, 1), -2.0f);
}

TEST(NpyTensorTest, ConvertsAndRefusesToOverflow) {
  const auto half =
      ToTensor("a", Array<float>(NpyType::kFloat32, {1.0f, 65504.0f}), DType::kFloat16);
  ASSERT_TRUE(half.ok());
  EXPECT_EQ(half->data.size(), 4u);
  EXPECT_EQ(At(*half, 1), 65504.0f);
  const auto beyond = ToTensor("a", Array<float>(NpyType::kFloat32, {1.0f, 7e4f}), DType::kFloat16);
  EXPECT_THAT(std::string(beyond.status().message()), HasSubstr("element 1 is 70000"));
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(ToTensor("a", Array<float>(NpyType::kFloat32, {infinity}), DType::kFloat16).ok());
  const auto widened =
      ToTensor("a", Array<uint16_t>(NpyType::kFloat16, {0x3c00}), DType::kBFloat16);
  ASSERT_TRUE(widened.ok());
  EXPECT_EQ(At(*widened, 0), 1.0f);
}

TEST(NpyTensorTest, Float64IsRoundedOnce) {
  // Rounded to float32 first, the first two become ties, which then go the wrong way, and the third
  // a value that is beyond float16.
  const NpyArray array =
      Array<double>(NpyType::kFloat64, {1 + 0x1p-11 + 0x1p-40, -(1 + 0x1.8p-10 - 0x1p-40),
                                        65520 - 0x1p-30, 0x1p-25 + 0x1p-60, 0x1p-1000, 0.1});
  const auto half = ToTensor("a", array, DType::kFloat16);
  ASSERT_TRUE(half.ok()) << half.status();
  EXPECT_EQ(At(*half, 0), 1 + 0x1p-10f);
  EXPECT_EQ(At(*half, 1), -(1 + 0x1p-10f));
  EXPECT_EQ(At(*half, 2), 65504.0f);
  EXPECT_EQ(At(*half, 3), 0x1p-24f);
  EXPECT_EQ(At(*half, 4), 0.0f);
  EXPECT_EQ(At(*half, 5), 0.0999755859375f);
  const auto bfloat = ToTensor(
      "a", Array<double>(NpyType::kFloat64, {1 + 0x1p-8 + 0x1p-40, 1 + 0x1.8p-7 - 0x1p-40}),
      DType::kBFloat16);
  ASSERT_TRUE(bfloat.ok()) << bfloat.status();
  EXPECT_EQ(At(*bfloat, 0), 1 + 0x1p-7f);
  EXPECT_EQ(At(*bfloat, 1), 1 + 0x1p-7f);
  EXPECT_FALSE(ToTensor("a", Array<double>(NpyType::kFloat64, {65520}), DType::kFloat16).ok());
}

TEST(NpyTensorTest, AdviceNamesTheFlagThatHelps) {
  const NpyArray f8 = Array<double>(NpyType::kFloat64, {1});
  const NpyArray u2 = Array<uint16_t>(NpyType::kUint16, {1});
  const auto message = [](const absl::StatusOr<OwnedTensor>& result) {
    return std::string(result.status().message());
  };
  EXPECT_THAT(message(ToTensor("a", f8, std::nullopt, "--phi_dtype")),
              HasSubstr("--phi_dtype=float32|"));
  EXPECT_THAT(message(ToTensor("a", u2, std::nullopt, "--phi_dtype")),
              HasSubstr("--phi_dtype=bfloat16"));
  EXPECT_EQ(message(ToTensor("a", u2, DType::kFloat32, nullptr)),
            "a: uint16 is not read here; accepted: float16, float32 or float64");
}

TEST(NpyTensorTest, ResultsOfBfloat16AreWidened) {
  const std::vector<int64_t> shape = {1, 1, 2};
  const NpyArray array = ToNpy(DType::kBFloat16, shape, std::string("\x80\x3f\x00\xc0", 4));
  EXPECT_EQ(array.type, NpyType::kFloat32);
  EXPECT_EQ(array.shape, shape);
  ASSERT_EQ(array.data.size(), 8u);
  EXPECT_EQ(LoadElement(DType::kFloat32, array.data.data(), 0), 1.0f);
  EXPECT_EQ(LoadElement(DType::kFloat32, array.data.data(), 1), -2.0f);
}

}  // namespace
}  // namespace flashbias::client
