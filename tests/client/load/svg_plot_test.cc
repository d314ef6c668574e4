#include "client/load/report/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/client/load/xml_check.h"

namespace flashbias::client {
namespace {

constexpr double kCharacterWidth = 6.5;  // of the font of ticks

double Number(const XmlElement& element, const std::string& name) {
  return std::stod(element.Attribute(name));
}

size_t Characters(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::vector<XmlElement> Parts(const Plot& plot, const PlotSize& size) {
  const XmlCheck check = CheckXml(RenderSvg(plot, size, "id"));
  EXPECT_EQ(check.error, "");
  return check.elements;
}

// No two labels of ticks overlap, and none leaves the picture.
void ExpectReadable(const Plot& plot, const PlotSize& size) {
  struct Box {
    double left, right, y;
  };
  std::vector<Box> boxes;
  for (const XmlElement& element : Parts(plot, size)) {
    if (element.Attribute("class") != "tick") continue;
    const double width = kCharacterWidth * static_cast<double>(Characters(element.text));
    const double x = Number(element, "x");
    const double left = element.Attribute("text-anchor") == "end" ? x - width : x - width / 2;
    boxes.push_back({left, left + width, Number(element, "y")});
    EXPECT_GE(left, -1) << element.text;
    EXPECT_LE(left + width, size.width + 1) << element.text;
  }
  EXPECT_GE(boxes.size(), 4u) << "two ticks of each axis";
  for (size_t a = 0; a < boxes.size(); ++a) {
    for (size_t b = 0; b < a; ++b) {
      const bool apart = std::abs(boxes[a].y - boxes[b].y) >= 12 ||
                         boxes[a].right <= boxes[b].left || boxes[b].right <= boxes[a].left;
      EXPECT_TRUE(apart) << "labels overlap at " << boxes[a].left << ", " << boxes[a].y;
    }
  }
}

TEST(SvgPlotTest, LabelsNeverOverlap) {
  for (const PlotSize& size : {PlotSize{560, 300}, PlotSize{340, 280}}) {
    for (double most = 1e-7; most < 1e12; most *= 2.7) {
      SCOPED_TRACE(absl::StrCat("most ", most, ", width ", size.width));
      ExpectReadable({.x = {.kind = AxisRange::Kind::kSpan, .most = most},
                      .y = {.kind = AxisRange::Kind::kLatency, .most = most}},
                     size);
      ExpectReadable({.x = {.kind = AxisRange::Kind::kCount, .most = most},
                      .y = {.kind = AxisRange::Kind::kCount, .most = most}},
                     size);
      for (const double ratio : {10.0, 26.0, 700.0, 1e5, 1e9, 1e17}) {
        ExpectReadable(
            {.x = {.kind = AxisRange::Kind::kNines, .most = std::log10(ratio)},
             .y = {.kind = AxisRange::Kind::kLatency, .least = most / ratio, .most = most}},
            size);
      }
    }
  }
}

Plot PlotOf(std::vector<Series::Point> points) {
  return {.x = {.kind = AxisRange::Kind::kCount, .most = 10},
          .y = {.kind = AxisRange::Kind::kCount, .most = 100},
          .series = {{.name = "s", .points = std::move(points)}}};
}

std::vector<std::string> PathsOf(const Plot& plot) {
  std::vector<std::string> paths;
  for (const XmlElement& element : Parts(plot, {})) {
    if (element.name == "path") paths.push_back(element.Attribute("d"));
  }
  return paths;
}

TEST(SvgPlotTest, PointsLieWhereTheirTicksSay) {
  std::map<std::string, double> x_of, y_of;
  std::vector<double> dots_x, dots_y;
  for (const XmlElement& element : Parts(PlotOf({{.x = 2, .y = 50}, {.x = 10, .y = 100}}), {})) {
    if (element.Attribute("class") == "tick") {
      (element.Attribute("text-anchor") == "end" ? y_of : x_of)[element.text] =
          element.Attribute("text-anchor") == "end" ? Number(element, "y") - 4
                                                    : Number(element, "x");
    }
    if (element.name == "circle") {
      dots_x.push_back(Number(element, "cx"));
      dots_y.push_back(Number(element, "cy"));
    }
  }
  ASSERT_EQ(dots_x.size(), 2u);
  EXPECT_NEAR(dots_x[0], x_of.at("2"), 0.2);
  EXPECT_NEAR(dots_y[1], y_of.at("100"), 0.2);
  EXPECT_NEAR(dots_x[1], x_of.at("10"), 0.2);
  EXPECT_NEAR(dots_y[0], (y_of.at("100") + y_of.at("0")) / 2, 0.2);
}

TEST(SvgPlotTest, AGapCutsTheLine) {
  constexpr double kGap = std::numeric_limits<double>::quiet_NaN();
  const auto moves = [](const std::string& path) {
    return std::count(path.begin(), path.end(), 'M');
  };
  const std::vector<std::string> whole =
      PathsOf(PlotOf({{.x = 1, .y = 1}, {.x = 2, .y = 2}, {.x = 4, .y = 4}, {.x = 5, .y = 5}}));
  ASSERT_EQ(whole.size(), 1u);
  EXPECT_EQ(moves(whole[0]), 1);
  const std::vector<std::string> cut = PathsOf(PlotOf({{.x = 1, .y = 1},
                                                       {.x = 2, .y = 2},
                                                       {.x = 3, .y = kGap},
                                                       {.x = 4, .y = 4},
                                                       {.x = 5, .y = 5}}));
  ASSERT_EQ(cut.size(), 1u);
  EXPECT_EQ(moves(cut[0]), 2);
}

TEST(SvgPlotTest, ManyPointsKeepTheirPeaks) {
  std::vector<Series::Point> points;
  for (int n = 0; n < 100'000; ++n) {
    points.push_back({.x = n / 10'000.0, .y = n == 43'217 ? 100.0 : 1.0});
  }
  const std::vector<std::string> paths = PathsOf(PlotOf(points));
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_LT(paths[0].size(), 40'000u);
  EXPECT_NE(paths[0].find(" 30.0"), std::string::npos) << "the top of the plot";
}

TEST(SvgPlotTest, ReferenceLinesAreLabelledInsideThePicture) {
  for (const double at : {0.0, 5.0, 10.0}) {
    Plot plot = PlotOf({{.x = 1, .y = 1}});
    plot.lines = {{.vertical = true, .value = at, .label = "best 123/s"},
                  {.value = at * 10, .label = "objective"}};
    int labels = 0;
    for (const XmlElement& element : Parts(plot, {})) {
      if (element.Attribute("class") != "mark-label") continue;
      ++labels;
      const double width = kCharacterWidth * static_cast<double>(Characters(element.text));
      const double x = Number(element, "x");
      const double left = element.Attribute("text-anchor") == "end" ? x - width : x;
      EXPECT_GE(left, 0);
      EXPECT_LE(left + width, 560);
      EXPECT_GE(Number(element, "y"), 12);
      EXPECT_LE(Number(element, "y"), 300);
    }
    EXPECT_EQ(labels, 2);
  }
}

TEST(SvgPlotTest, TextsAreEscapedAndDescribed) {
  Plot plot = PlotOf({{.x = 1, .y = 1, .tooltip = "<b>"}});
  plot.title = "a & b";
  plot.description = "<d>";
  const std::string svg = RenderSvg(plot, {}, "id");
  EXPECT_NE(svg.find("<title id=\"id-t\">a &amp; b</title>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("<desc id=\"id-d\">&lt;d&gt;</desc>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("<title>&lt;b&gt;</title>"), std::string::npos) << svg;
}

}  // namespace
}  // namespace flashbias::client
