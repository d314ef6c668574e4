#include "client/load/report/axis.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/load/report/human_units.h"

namespace flashbias::client {
namespace {

// A latency axis is logarithmic from here on: below, the small values can still be told apart.
constexpr double kLogarithmicFrom = 25;

double FiniteOr(double value, double otherwise) { return std::isfinite(value) ? value : otherwise; }

// The least of 1, 2 and 5 times a power of ten that is not below `value`, but for rounding.
double RoundUp(double value) {
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= value * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

double RoundDown(double value) {
  const double power = std::pow(10, std::floor(std::log10(value) + 1e-9));
  for (const double factor : {5.0, 2.0}) {
    if (factor * power <= value * (1 + 1e-9)) return factor * power;
  }
  return power;
}

// From 0, in steps of one unit's 1, 2 or 5.
Axis Linear(double most, const Unit& unit, int max_ticks) {
  const double wanted = most / unit.size;
  const double step = RoundUp(wanted / (max_ticks - 1));
  const int steps = std::max(1, static_cast<int>(std::ceil(wanted / step * (1 - 1e-9))));
  const int digits = std::max(0, -static_cast<int>(std::floor(std::log10(step) + 1e-9)));
  Axis axis{.end = steps * step * unit.size, .unit = unit.name};
  for (int n = 0; n <= steps; ++n) {
    const double value = n * step;
    // What is beyond any unit would fill the plot with digits.
    const bool plain = value < 1e7 && digits <= 6;
    axis.ticks.push_back({.at = static_cast<double>(n) / steps,
                          .label = n == 0  ? "0"
                                   : plain ? absl::StrFormat("%.*f", digits, value)
                                           : absl::StrFormat("%.3g", value)});
  }
  return axis;
}

std::string LatencyLabel(double seconds) {
  const Unit unit = LatencyUnit(seconds);
  return absl::StrFormat("%.6g %s", seconds / unit.size, unit.name);
}

Axis LogarithmicLatency(double least, double most, int max_ticks) {
  Axis axis{.logarithmic = true, .begin = RoundDown(least), .end = RoundUp(most)};
  std::vector<double> values = {axis.begin};
  while (values.back() < axis.end * (1 - 1e-9)) values.push_back(RoundUp(values.back() * 1.001));
  // 1, 2 and 5 where they do not crowd.
  if (static_cast<int>(values.size()) > 2 * max_ticks) {
    const int first = static_cast<int>(std::ceil(std::log10(axis.begin) - 1e-9));
    const int last = static_cast<int>(std::floor(std::log10(axis.end) + 1e-9));
    const int step = (last - first + max_ticks) / max_ticks;
    values.clear();
    for (int decade = first; decade <= last; decade += step) values.push_back(std::pow(10, decade));
  }
  for (const double value : values) {
    axis.ticks.push_back({.at = axis.At(value), .label = LatencyLabel(value)});
  }
  return axis;
}

Axis Nines(double most, int max_ticks) {
  const double end = std::clamp(most, 1.0, 9.0);
  Axis axis{.end = end, .unit = "%"};
  const int last = static_cast<int>(end + 1e-9);
  const int step = (last + max_ticks - 2) / (max_ticks - 1);
  for (int nines = 0; nines <= last; nines += step) {
    axis.ticks.push_back(
        {.at = nines / end,
         .label = nines < 2 ? (nines == 0 ? "0" : "90")
                            : absl::StrFormat("%.*f", nines - 2, 100 - std::pow(10, 2 - nines))});
  }
  return axis;
}

}  // namespace

double Axis::At(double value) const {
  if (logarithmic) {
    if (!(value > begin)) return 0;
    return std::min(1.0, std::log(value / begin) / std::log(end / begin));
  }
  return std::clamp((value - begin) / (end - begin), 0.0, 1.0);
}

Axis MakeAxis(const AxisRange& range, int max_ticks) {
  double most = FiniteOr(range.most, 0);
  switch (range.kind) {
    case AxisRange::Kind::kNines:
      return Nines(most, max_ticks);
    case AxisRange::Kind::kSpan:
      most = most > 0 ? most : 1;
      return Linear(most, SpanUnit(most), max_ticks);
    case AxisRange::Kind::kCount:
      most = most > 0 ? most : 1;
      return Linear(most, CountUnit(most), max_ticks);
    case AxisRange::Kind::kLatency:
      most = most > 0 ? most : 1e-3;
      break;
  }
  const double least = FiniteOr(range.least, 0);
  return least > 0 && most > least * kLogarithmicFrom ? LogarithmicLatency(least, most, max_ticks)
                                                      : Linear(most, LatencyUnit(most), max_ticks);
}

}  // namespace flashbias::client
