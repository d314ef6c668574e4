#include "client/flags/output_file.h"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;

class OutputFileTest : public testing::Test {
 protected:
  ~OutputFileTest() override { std::remove(path_.c_str()); }

  bool Exists() const { return std::ifstream(path_).good(); }
  std::string Content() const {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const std::string path_ = testing::TempDir() + "output_file_test_" +
                            testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(OutputFileTest, WritesItsParts) {
  absl::StatusOr<OutputFile> file = OutputFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->Write({"ab", "", "cd"}).ok());
  EXPECT_EQ(Content(), "abcd");
}

TEST_F(OutputFileTest, KeepsWhatWasThereUntilItIsWritten) {
  std::ofstream(path_) << "what was there";
  {
    absl::StatusOr<OutputFile> file = OutputFile::Open(path_);
    ASSERT_TRUE(file.ok()) << file.status();
  }
  EXPECT_EQ(Content(), "what was there");
  absl::StatusOr<OutputFile> file = OutputFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->Write({"new"}).ok());
  EXPECT_EQ(Content(), "new");
}

TEST_F(OutputFileTest, RemovesWhatItCreatedAndDidNotWrite) {
  {
    absl::StatusOr<OutputFile> file = OutputFile::Open(path_);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE(Exists());
  }
  EXPECT_FALSE(Exists());
}

TEST_F(OutputFileTest, ErrorsNameTheFile) {
  EXPECT_EQ(OutputFile::Open("/nowhere/x").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(OutputFile::Open("/nowhere/x").status().message()),
              HasSubstr("/nowhere/x: cannot write"));
  EXPECT_FALSE(OutputFile::Open(testing::TempDir()).ok());
  absl::StatusOr<OutputFile> full = OutputFile::Open("/dev/full");
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_THAT(std::string(full->Write({"x"}).message()), HasSubstr("/dev/full: cannot write"));
}

}  // namespace
}  // namespace flashbias::client
