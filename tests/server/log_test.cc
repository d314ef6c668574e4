#include "server/log.h"

#include <gtest/gtest.h>

#include <string>

namespace flashbias::server {
namespace {

TEST(LogTest, TextIsKeyEqualsValue) {
  EXPECT_EQ(FormatLog(LogFormat::kText, "serving",
                      {{"port", 8471},
                       {"address", "0.0.0.0:8471"},
                       {"devices", "AVX2, 2 threads"},
                       {"empty", ""},
                       {"delay", absl::Milliseconds(2)},
                       {"on", true}}),
            "serving port=8471 address=0.0.0.0:8471 devices=\"AVX2, 2 threads\" empty=\"\" "
            "delay=2ms on=true");
}

TEST(LogTest, JsonIsEscapedAndTyped) {
  EXPECT_EQ(
      FormatLog(LogFormat::kJson, "a \"b\"", {{"n", -3}, {"text", "x\\y\n\x01"}, {"off", false}}),
      R"("message":"a \"b\"","n":-3,"text":"x\\y\n\u0001","off":false)");
}

TEST(LogTest, LevelsBelowTheSetOneAreOff) {
  InitLog(LogLevel::kWarning, LogFormat::kText);
  EXPECT_FALSE(LogEnabled(LogLevel::kInfo));
  EXPECT_TRUE(LogEnabled(LogLevel::kError));
  testing::internal::CaptureStderr();
  Log(LogLevel::kInfo, "silent");
  Log(LogLevel::kError, "loud", {{"k", "v"}});
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_EQ(lines.find("silent"), std::string::npos);
  EXPECT_NE(lines.find(" error loud k=v\n"), std::string::npos) << lines;
}

TEST(LogTest, JsonLinesAreWholeObjects) {
  InitLog(LogLevel::kInfo, LogFormat::kJson);
  testing::internal::CaptureStderr();
  Log(LogLevel::kInfo, "event", {{"k", "v"}});
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_EQ(line.rfind("{\"time\":\"", 0), 0u) << line;
  EXPECT_NE(line.find("\"level\":\"info\",\"message\":\"event\",\"k\":\"v\"}\n"), std::string::npos)
      << line;
}

}  // namespace
}  // namespace flashbias::server
