#include "client/flags/input_file.h"

#include <cstdio>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;

class InputFileTest : public testing::Test {
 protected:
  ~InputFileTest() override { std::remove(path_.c_str()); }

  const std::string path_ = testing::TempDir() + "input_file_test_" +
                            testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(InputFileTest, GivesEveryByte) {
  std::string bytes(10'000, 'x');
  bytes[5000] = '\0';
  std::ofstream(path_) << bytes;
  const absl::StatusOr<std::string> read = ReadSmallFile(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, bytes);
}

TEST_F(InputFileTest, ErrorsBeginWithTheName) {
  EXPECT_EQ(ReadSmallFile(path_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ReadSmallFile(path_).status().message()),
              HasSubstr(path_ + ": cannot read"));
  EXPECT_THAT(std::string(ReadSmallFile(testing::TempDir()).status().message()),
              HasSubstr(testing::TempDir() + ": cannot read"));
  std::ofstream(path_).flush();
  EXPECT_EQ(ReadSmallFile(path_).status(), absl::InvalidArgumentError(path_ + ": is empty"));
  EXPECT_EQ(ReadSmallFile("/dev/zero").status(),
            absl::InvalidArgumentError("/dev/zero: has more than 16777216 bytes"));
}

}  // namespace
}  // namespace flashbias::client
