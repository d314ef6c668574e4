#include "client/load/report/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/load/report/markup_text.h"

namespace flashbias::client {
namespace {

// Of the 12 px font of ticks; wide enough for every system's.
constexpr double kCharacterWidth = 6.8;
constexpr double kTop = 30;     // the y title above the plot
constexpr double kBottom = 46;  // tick labels and the x title below
constexpr double kRight = 18;
constexpr double kMarkerDistance = 13;  // where markers would be nearer, there are none
constexpr double kTooltipsUpTo = 200;

std::string N(double value) { return absl::StrFormat("%.1f", value); }

// Characters, not bytes, of UTF-8.
double TextWidth(absl::string_view text) {
  const auto characters = std::count_if(text.begin(), text.end(), [](char byte) {
    return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
  });
  return static_cast<double>(characters) * kCharacterWidth;
}

std::string WithUnit(const std::string& title, const std::string& unit) {
  return unit.empty() ? title : absl::StrCat(title, " (", unit, ")");
}

// Where things are.
struct Frame {
  Axis x, y;
  double left, right, top, bottom;  // of the plotting area

  double X(double value) const { return left + x.At(value) * (right - left); }
  double Y(double value) const { return bottom - y.At(value) * (bottom - top); }
};

Frame MakeFrame(const Plot& plot, const PlotSize& size) {
  Frame frame{.y = MakeAxis(plot.y, std::max(3, static_cast<int>((size.height - 76) / 40)))};
  double widest = 0;
  for (const Axis::Tick& tick : frame.y.ticks) widest = std::max(widest, TextWidth(tick.label));
  frame.left = 10 + widest;
  frame.right = size.width - kRight;
  frame.top = kTop;
  frame.bottom = size.height - kBottom;
  frame.x = MakeAxis(plot.x, std::max(3, static_cast<int>((frame.right - frame.left) / 64)));
  return frame;
}

void AddAxes(const Plot& plot, const PlotSize& size, const Frame& frame, std::string* out) {
  for (const Axis::Tick& tick : frame.y.ticks) {
    const double y = frame.bottom - tick.at * (frame.bottom - frame.top);
    absl::StrAppend(out, "<line class=\"grid\" x1=\"", N(frame.left), "\" x2=\"", N(frame.right),
                    "\" y1=\"", N(y), "\" y2=\"", N(y), "\"/>");
    absl::StrAppend(out, "<text class=\"tick\" text-anchor=\"end\" x=\"", N(frame.left - 6),
                    "\" y=\"", N(y + 4), "\">", EscapeMarkup(tick.label), "</text>");
  }
  double free_from = 0;
  for (const Axis::Tick& tick : frame.x.ticks) {
    const double x = frame.left + tick.at * (frame.right - frame.left);
    absl::StrAppend(out, "<line class=\"grid\" x1=\"", N(x), "\" x2=\"", N(x), "\" y1=\"",
                    N(frame.top), "\" y2=\"", N(frame.bottom), "\"/>");
    const double width = TextWidth(tick.label);
    const double begin = std::clamp(x - width / 2, 0.0, std::max(0.0, size.width - width));
    if (begin < free_from) continue;
    free_from = begin + width + 4;
    absl::StrAppend(out, "<text class=\"tick\" text-anchor=\"middle\" x=\"", N(begin + width / 2),
                    "\" y=\"", N(frame.bottom + 17), "\">", EscapeMarkup(tick.label), "</text>");
  }
  absl::StrAppend(out, "<line class=\"axis\" x1=\"", N(frame.left), "\" x2=\"", N(frame.right),
                  "\" y1=\"", N(frame.bottom), "\" y2=\"", N(frame.bottom), "\"/>");
  absl::StrAppend(out, "<text class=\"axis-title\" x=\"0\" y=\"14\">",
                  EscapeMarkup(WithUnit(plot.y_title, frame.y.unit)), "</text>");
  absl::StrAppend(out, "<text class=\"axis-title\" text-anchor=\"end\" x=\"", N(frame.right),
                  "\" y=\"", N(size.height - 6), "\">",
                  EscapeMarkup(WithUnit(plot.x_title, frame.x.unit)), "</text>");
}

struct Pixel {
  double x, y;
  const Series::Point* point;
};

// The points in pixels, cut at gaps. Of those that share a column of pixels the first, the lowest,
// the highest and the last are kept, so that a line looks the same whatever their number.
std::vector<std::vector<Pixel>> Pieces(const Series& series, const Frame& frame) {
  std::vector<std::vector<Pixel>> pieces(1);
  std::vector<Pixel> column;
  const auto end_column = [&] {
    if (column.size() > 4) {
      const auto by_y = [](const Pixel& a, const Pixel& b) { return a.y < b.y; };
      const auto ends = std::minmax_element(column.begin(), column.end(), by_y);
      std::vector<Pixel> kept = {column.front(), *std::min(ends.first, ends.second),
                                 *std::max(ends.first, ends.second), column.back()};
      column = std::move(kept);
    }
    pieces.back().insert(pieces.back().end(), column.begin(), column.end());
    column.clear();
  };
  for (const Series::Point& point : series.points) {
    if (!std::isfinite(point.x)) continue;
    if (!std::isfinite(point.y)) {
      end_column();
      if (!pieces.back().empty()) pieces.emplace_back();
      continue;
    }
    const Pixel pixel{frame.X(point.x), frame.Y(point.y), &point};
    if (!column.empty() && std::floor(column.back().x) != std::floor(pixel.x)) end_column();
    column.push_back(pixel);
  }
  end_column();
  return pieces;
}

void AddMarker(const Series& series, const Pixel& pixel, bool visible, std::string* out) {
  const Series::Point& point = *pixel.point;
  const std::string circle = absl::StrCat("<circle cx=\"", N(pixel.x), "\" cy=\"", N(pixel.y));
  if (visible) {
    absl::StrAppend(out, circle, "\" r=\"3\" class=\"", point.hollow ? "hollow" : "dot", " c",
                    series.colour, "\"/>");
  }
  if (point.tooltip.empty()) return;
  absl::StrAppend(out, circle, "\" r=\"8\" class=\"hit\"><title>", EscapeMarkup(point.tooltip),
                  "</title></circle>");
}

void AddSeries(const Series& series, const Frame& frame, std::string* out) {
  const std::vector<std::vector<Pixel>> pieces = Pieces(series, frame);
  std::string path;
  for (const std::vector<Pixel>& piece : pieces) {
    if (piece.size() < 2) continue;
    for (size_t n = 0; n < piece.size(); ++n) {
      absl::StrAppend(&path, n == 0 ? "M" : "L", N(piece[n].x), " ", N(piece[n].y));
    }
  }
  if (!path.empty()) {
    absl::StrAppend(out, "<path class=\"", StrokeClass(series), "\" d=\"", path, "\"/>");
  }
  const auto count = static_cast<double>(series.points.size());
  for (const std::vector<Pixel>& piece : pieces) {
    // A point between two gaps has no line.
    const bool visible = piece.size() == 1 || (series.stroke != Series::Stroke::kBand &&
                                               count * kMarkerDistance <= frame.right - frame.left);
    if (!visible && count > kTooltipsUpTo) continue;
    for (const Pixel& pixel : piece) AddMarker(series, pixel, visible, out);
  }
}

// Where a vertical line has its label: at the top, below the label of a horizontal line there.
double TopLabel(const Plot& plot, const Frame& frame) {
  double y = frame.top + 14;
  for (const ReferenceLine& line : plot.lines) {
    if (line.vertical || !std::isfinite(line.value)) continue;
    const double at = frame.Y(line.value);
    if (at < frame.top + 40) y = std::max(y, at + 32);
  }
  return y;
}

void AddReferenceLine(const ReferenceLine& line, const Plot& plot, const Frame& frame,
                      std::string* out) {
  if (!std::isfinite(line.value)) return;
  double x1 = frame.left, x2 = frame.right, y1 = frame.top, y2 = frame.bottom;
  double label_x, label_y;
  absl::string_view anchor = "start";
  if (line.vertical) {
    x1 = x2 = frame.X(line.value);
    // Curves rise to the right, so there is more room on the left.
    label_x = x1 - 6;
    label_y = TopLabel(plot, frame);
    if (label_x - TextWidth(line.label) < frame.left) {
      label_x = x1 + 6;
    } else {
      anchor = "end";
    }
  } else {
    y1 = y2 = frame.Y(line.value);
    label_x = frame.left + 6;
    label_y = y1 - 6 < frame.top + 8 ? y1 + 15 : y1 - 6;
  }
  absl::StrAppend(out, "<line class=\"mark\" x1=\"", N(x1), "\" x2=\"", N(x2), "\" y1=\"", N(y1),
                  "\" y2=\"", N(y2), "\"/>");
  absl::StrAppend(out, "<text class=\"mark-label\" text-anchor=\"", anchor, "\" x=\"", N(label_x),
                  "\" y=\"", N(label_y), "\">", EscapeMarkup(line.label), "</text>");
}

}  // namespace

std::string StrokeClass(const Series& series) {
  const auto name = [&] {
    switch (series.stroke) {
      case Series::Stroke::kSolid:
        return "";
      case Series::Stroke::kDashed:
        return " dashed";
      case Series::Stroke::kDotted:
        return " dotted";
      case Series::Stroke::kBand:
        return " band";
    }
    return "";
  };
  return absl::StrCat("line c", series.colour, name());
}

std::string RenderSvg(const Plot& plot, const PlotSize& size, const std::string& id) {
  const Frame frame = MakeFrame(plot, size);
  std::string out = absl::StrFormat(
      "<svg class=\"plot\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-labelledby=\"%s-t %s-d\">"
      "<title id=\"%s-t\">%s</title><desc id=\"%s-d\">%s</desc>",
      size.width, size.height, id, id, id, EscapeMarkup(plot.title), id,
      EscapeMarkup(plot.description));
  AddAxes(plot, size, frame, &out);
  for (const Series& series : plot.series) AddSeries(series, frame, &out);
  for (const ReferenceLine& line : plot.lines) AddReferenceLine(line, plot, frame, &out);
  absl::StrAppend(&out, "</svg>\n");
  return out;
}

}  // namespace flashbias::client
