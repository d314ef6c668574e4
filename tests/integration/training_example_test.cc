// The example trains against the real server process, and its losses are those of the same
// training in one process.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/child_process.h"
#include "tests/integration/server_process.h"

namespace flashbias::integration {
namespace {

using ::testing::HasSubstr;

// Full-size matrix products take minutes where they are not optimised.
#ifdef NDEBUG
constexpr int kHeads = 50;
#else
constexpr int kHeads = 4;
#endif

class TrainingExampleTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = ServerProcess::Start();
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  // What the program prints; expects it to end well.
  std::string Train(const std::vector<std::string>& arguments) {
    auto child = ChildProcess::Start(ProgramPath("train_alibi_layer"), arguments,
                                     server_->Path("train.log"));
    EXPECT_TRUE(child.ok()) << child.status();
    if (!child.ok()) return "";
    const absl::StatusOr<int> code = child->Wait(absl::Seconds(120));
    EXPECT_TRUE(code.ok()) << code.status();
    if (code.ok()) {
      EXPECT_EQ(*code, 0) << child->Output();
    }
    return child->Output();
  }

  std::unique_ptr<ServerProcess> server_;
};

// The second column of the lines that begin with a step.
std::vector<double> Losses(const std::string& output) {
  std::vector<double> losses;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(output, '\n'))) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    int step = 0;
    double loss = 0;
    if (words.size() >= 2 && absl::SimpleAtoi(words[0], &step) &&
        absl::SimpleAtod(words[1], &loss)) {
      losses.push_back(loss);
    }
  }
  return losses;
}

TEST_F(TrainingExampleTest, LossesAreThoseOfLocalAttention) {
  const std::string output = Train({absl::StrCat("--target=", server_->tcp_target()), "--compare",
                                    "--steps=3", "--seq_len=32", absl::StrCat("--heads=", kHeads)});
  EXPECT_THAT(output, HasSubstr("largest difference"));
  EXPECT_THAT(output, HasSubstr("accepted with float32"));
  EXPECT_EQ(Losses(output).size(), 3u) << output;
}

TEST_F(TrainingExampleTest, SixteenBitsTrainToo) {
  const std::string output =
      Train({absl::StrCat("--target=", server_->unix_target()), "--compare", "--dtype=float16",
             "--steps=15", "--seq_len=64", "--heads=4", "--learning_rate=0.05"});
  EXPECT_THAT(output, HasSubstr("slopes moved"));
  const std::vector<double> losses = Losses(output);
  ASSERT_EQ(losses.size(), 15u) << output;
  EXPECT_LT(losses.back(), losses.front() - 1) << output;
}

}  // namespace
}  // namespace flashbias::integration
