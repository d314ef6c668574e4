#include "client/flags/command_line.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

ABSL_FLAG(int64_t, test_count, 3, "how many");
ABSL_FLAG(bool, test_fast, true, "whether fast");
ABSL_FLAG(double, test_share, 0, "what share");
ABSL_FLAG(std::vector<std::string>, test_list, {}, "which");

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<CommandLine> Parse(const std::vector<const char*>& arguments) {
  return ParseFlags(arguments, {{"test_share", "0.05"}});
}

TEST(CommandLineTest, SetsFlagsInEverySpelling) {
  ASSERT_TRUE(Parse({"--test_count=5", "--notest_fast", "--test_share"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 5);
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_fast));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_share), 0.05);
  ASSERT_TRUE(
      Parse({"-test_count", "-6", "--test_fast", "--test_share=0.5", "--test_list=1,-2"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), -6);
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_fast));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_share), 0.5);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_list), (std::vector<std::string>{"1", "-2"}));
  // A flag that may stand alone leaves the next argument to itself.
  ASSERT_TRUE(Parse({"--test_share", "--test_count", "7"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_share), 0.05);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 7);
}

TEST(CommandLineTest, ErrorsAreOneLineThatNamesTheArgument) {
  for (const auto& [arguments, part] :
       std::vector<std::pair<std::vector<const char*>, const char*>>{
           {{"--test_count=x"}, "--test_count"},
           {{"--test_count"}, "--test_count needs a value"},
           {{"--unknown=1"}, "no flag --unknown"},
           {{"--notest_count"}, "no flag --notest_count"},
           {{"--test_fast=maybe"}, "--test_fast"},
           {{"file.npy"}, "'file.npy' is no flag"},
           {{"-"}, "'-' is no flag"}}) {
    const auto result = Parse(arguments);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(part));
  }
}

TEST(CommandLineTest, HelpListsTheFlagsOfTheProgram) {
  const auto line = Parse({"--help", "--unknown"});
  ASSERT_TRUE(line.ok());
  EXPECT_TRUE(line->help);
  const std::string text = HelpText("usage\n", "command_line_test");
  EXPECT_THAT(text, HasSubstr("--test_count  (default: 3)"));
  EXPECT_THAT(text, HasSubstr("whether fast"));
  EXPECT_THAT(text, testing::Not(HasSubstr("gtest")));
}

TEST(CommandLineTest, ErrorLineIsOneLine) {
  EXPECT_EQ(ErrorLine("prog", absl::NotFoundError("a\nb\r\nc")), "prog: NOT_FOUND: a b  c");
}

}  // namespace
}  // namespace flashbias::client
