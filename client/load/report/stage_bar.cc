#include "client/load/report/stage_bar.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/load/report/markup_text.h"

namespace flashbias::client {
namespace {

constexpr double kWidth = 1000;  // of the coordinates; the picture is stretched
constexpr double kHeight = 36;

double Size(const BarPart& part) {
  return std::isfinite(part.value) && part.value > 0 ? part.value : 0;
}

}  // namespace

std::string RenderStackedBar(const std::string& title, const std::string& description,
                             absl::Span<const BarPart> parts, const std::string& id) {
  double whole = 0;
  for (const BarPart& part : parts) whole += Size(part);
  std::string out = absl::StrFormat(
      "<svg class=\"bar\" viewBox=\"0 0 %.0f %.0f\" preserveAspectRatio=\"none\" role=\"img\" "
      "aria-labelledby=\"%s-t %s-d\"><title id=\"%s-t\">%s</title><desc id=\"%s-d\">%s</desc>",
      kWidth, kHeight, id, id, id, EscapeMarkup(title), id, EscapeMarkup(description));
  double begin = 0;
  for (const BarPart& part : parts) {
    const double width = whole > 0 && std::isfinite(whole) ? Size(part) / whole * kWidth : 0;
    if (width <= 0) continue;
    absl::StrAppendFormat(&out,
                          "<rect class=\"g%d\" x=\"%.2f\" y=\"0\" width=\"%.2f\" height=\"%.0f\">"
                          "<title>%s</title></rect>",
                          part.colour, begin, width, kHeight, EscapeMarkup(part.tooltip));
    begin += width;
  }
  absl::StrAppend(&out, "</svg>\n");
  return out;
}

}  // namespace flashbias::client
