#include "client/load/report/markup_text.h"

#include <string>

#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

constexpr char kBad[] = "\xEF\xBF\xBD";

TEST(MarkupTextTest, EscapesWhatMarkupMeans) {
  EXPECT_EQ(EscapeMarkup("<a href=\"x\">'&'</a>"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;");
  EXPECT_EQ(EscapeMarkup("µs, 5 ≤ 6, 漢, 😀"), "µs, 5 ≤ 6, 漢, 😀");
}

TEST(MarkupTextTest, ControlCharactersAreNotShown) {
  EXPECT_EQ(PrintableText("a\nb\tc\rd"), "a b c d");
  EXPECT_EQ(PrintableText("\x1B[31mred"), std::string(kBad) + "[31mred");
  EXPECT_EQ(PrintableText(std::string(1, '\0')), kBad);
  EXPECT_EQ(PrintableText("\x7F"), kBad);
  EXPECT_EQ(PrintableText("\xC2\x9B"), kBad) << "an 8-bit control character";
  EXPECT_EQ(PrintableText("\xEF\xBF\xBF"), kBad) << "U+FFFF is no character of XML";
}

TEST(MarkupTextTest, WhatIsNotUtf8IsReplaced) {
  EXPECT_EQ(PrintableText("a\xFF"), std::string("a") + kBad);
  EXPECT_EQ(PrintableText("\xC3"), kBad) << "cut off";
  EXPECT_EQ(PrintableText("\xC3("), std::string(kBad) + "(");
  EXPECT_EQ(PrintableText("\xC0\xBC"), std::string(kBad) + kBad) << "an overlong <";
  EXPECT_EQ(PrintableText("\xE0\x80\xBC"), std::string(kBad) + kBad + kBad);
  EXPECT_EQ(PrintableText("\xED\xA0\x80"), std::string(kBad) + kBad + kBad) << "a surrogate";
  EXPECT_EQ(PrintableText("\xF4\x90\x80\x80"), std::string(kBad) + kBad + kBad + kBad);
}

}  // namespace
}  // namespace flashbias::client
