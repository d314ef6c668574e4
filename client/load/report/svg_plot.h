// Draws a plot as SVG to be put into an HTML page.
//
// Colours come from the page's style sheet: classes c1 to c5 of series, and those named in
// report_style.h. Nothing overlaps at any size: ticks are as many as fit. Pure functions;
// thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_SVG_PLOT_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_SVG_PLOT_H_

#include <string>
#include <vector>

#include "client/load/report/axis.h"

namespace flashbias::client {

struct Series {
  struct Point {
    double x = 0;
    double y = 0;              // not finite: a gap
    std::string tooltip = {};  // of its marker; empty: none
    bool hollow = false;       // its marker
  };
  std::string name = {};
  int colour = 1;  // 1 to 5
  // Lines differ in more than colour.
  // A band is wide and pale, to be seen beneath a line that covers it; it has no markers.
  enum class Stroke { kSolid, kDashed, kDotted, kBand } stroke = Stroke::kSolid;
  std::vector<Point> points = {};  // x ascending
};

// A line across the plot with its name beside.
struct ReferenceLine {
  bool vertical = false;
  double value = 0;  // of x when vertical, otherwise of y
  std::string label = {};
};

struct Plot {
  std::string title = {};
  std::string description = {};  // for those who cannot see it
  std::string x_title = {}, y_title = {};
  AxisRange x = {}, y = {};
  std::vector<Series> series = {};
  std::vector<ReferenceLine> lines = {};
};

struct PlotSize {
  double width = 560;  // pixels, in which fonts have their size
  double height = 300;
};

// The class of a series' line, for a legend.
std::string StrokeClass(const Series& series);

// One <svg> element. `id` starts the ids in it and must be unique on the page. All texts of the
// plot may be anything.
std::string RenderSvg(const Plot& plot, const PlotSize& size, const std::string& id);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_SVG_PLOT_H_
