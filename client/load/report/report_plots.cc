#include "client/load/report/report_plots.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/load/report/human_units.h"
#include "client/load/report/markup_text.h"
#include "client/load/report/run_figures.h"
#include "client/load/report/stage_bar.h"
#include "client/load/report/svg_plot.h"

namespace flashbias::client {
namespace {

constexpr double kGap = std::numeric_limits<double>::quiet_NaN();
constexpr PlotSize kWide = {.width = 560, .height = 300};
constexpr PlotSize kNarrow = {.width = 340, .height = 280};

std::string Caption(absl::string_view title, absl::string_view note) {
  return absl::StrCat("<figcaption><h3>", EscapeMarkup(title), "</h3><p>", EscapeMarkup(note),
                      "</p></figcaption>");
}

std::string Legend(const std::vector<Series>& all) {
  std::string out = "<ul class=\"legend\">";
  for (const Series& series : all) {
    absl::StrAppend(&out, "<li><svg class=\"key\" viewBox=\"0 0 26 10\" aria-hidden=\"true\">");
    absl::StrAppend(&out, "<path class=\"", StrokeClass(series), "\" d=\"M1 5L25 5\"/>");
    absl::StrAppend(&out, "</svg>", EscapeMarkup(series.name), "</li>");
  }
  return out + "</ul>";
}

std::string Figure(const Plot& plot, absl::string_view note, const std::string& id) {
  return absl::StrCat("<figure class=\"card\">", Caption(plot.title, note), Legend(plot.series),
                      "<div class=\"wide\">", RenderSvg(plot, kWide, id + "-wide"),
                      "</div><div class=\"narrow\">", RenderSvg(plot, kNarrow, id + "-narrow"),
                      "</div></figure>\n");
}

std::string Nothing(absl::string_view title, absl::string_view why) {
  return absl::StrCat("<figure class=\"card\">", Caption(title, why), "</figure>\n");
}

// Widens the range by a value that is to be seen.
void Include(double value, AxisRange* range) {
  if (!std::isfinite(value) || value < 0) return;
  range->most = std::max(range->most, value);
  if (value > 0) range->least = range->least > 0 ? std::min(range->least, value) : value;
}

void IncludePoints(const std::vector<Series>& all, AxisRange* x, AxisRange* y) {
  for (const Series& series : all) {
    for (const Series::Point& point : series.points) {
      if (!std::isfinite(point.y)) continue;
      Include(point.x, x);
      Include(point.y, y);
    }
  }
}

Series NinesOf(const LatencyHistogram& latency, double end) {
  constexpr int kPointsPerNine = 40;
  Series series;
  const int count = static_cast<int>(std::lround(end * kPointsPerNine));
  for (int n = 0; n <= count; ++n) {
    const double nines = static_cast<double>(n) / kPointsPerNine;
    const double percent = 100 * (1 - std::pow(10, -nines));
    const double seconds = absl::ToDoubleSeconds(latency.Percentile(percent));
    std::string tooltip;
    // Enough to be read off; more would cover each other.
    if (n % (kPointsPerNine / 4) == 0) {
      tooltip = absl::StrFormat("%.6g %%: %s", percent, FormatLatency(seconds));
    }
    series.points.push_back({.x = nines, .y = seconds, .tooltip = std::move(tooltip)});
  }
  return series;
}

double Middle(const Interval& interval) {
  return absl::ToDoubleSeconds(interval.start + interval.length / 2);
}

std::string At(const Interval& interval, absl::string_view text) {
  return absl::StrCat("from ", FormatSpan(interval.start), ": ", text);
}

AxisRange TimeRange(const LoadResult& result) {
  const Interval& last = PlottedIntervals(result).back();
  return {.kind = AxisRange::Kind::kSpan, .most = absl::ToDoubleSeconds(last.start + last.length)};
}

double Percentile(const LoadResult& result, double percent) {
  return result.latency.count() == 0 ? kGap
                                     : absl::ToDoubleSeconds(result.latency.Percentile(percent));
}

// The runs of a sweep by their rates, the overload last.
struct RatedRun {
  const RunReport* run;
  bool met;
};
std::vector<RatedRun> ByRate(const SweepReport& sweep) {
  std::vector<RatedRun> runs;
  for (size_t n = 0; n < sweep.steps.size(); ++n) {
    runs.push_back({&sweep.steps[n], n < sweep.met.size() && sweep.met[n]});
  }
  std::stable_sort(runs.begin(), runs.end(),
                   [](const RatedRun& a, const RatedRun& b) { return a.run->rate < b.run->rate; });
  return runs;
}

void MarkBestRate(const SweepReport& sweep, Plot* plot) {
  if (!sweep.best_rate.has_value()) return;
  plot->lines.push_back({.vertical = true,
                         .value = *sweep.best_rate,
                         .label = absl::StrCat("best ", FormatNumber(*sweep.best_rate), "/s")});
}

}  // namespace

std::string LatencyByPercentile(const RunReport& run, const std::string& id) {
  constexpr absl::string_view kTitle = "Latency by percentile";
  const LoadResult& result = run.result;
  if (result.latency.count() == 0) return Nothing(kTitle, "No request succeeded.");
  const double end = std::clamp(std::log10(static_cast<double>(result.latency.count())), 1.0, 6.0);
  Plot plot{.title = std::string(kTitle),
            .x_title = "Percentile",
            .y_title = "Latency",
            .x = {.kind = AxisRange::Kind::kNines, .most = end},
            .y = {.kind = AxisRange::Kind::kLatency}};
  plot.series.push_back(NinesOf(result.latency, end));
  plot.series.back().name = run.loop == LoopKind::kOpen ? "latency, from intended send" : "latency";
  if (result.service.count() > 0) {
    plot.series.push_back(NinesOf(result.service, end));
    plot.series.back().name = "service, from actual send";
    plot.series.back().colour = 2;
    plot.series.back().stroke = Series::Stroke::kDashed;
  }
  AxisRange unused;
  IncludePoints(plot.series, &unused, &plot.y);
  plot.description = absl::StrCat("Half of the requests took at most ",
                                  FormatLatency(result.latency.Percentile(50)), ", 99 % at most ",
                                  FormatLatency(result.latency.Percentile(99)), ", the slowest ",
                                  FormatLatency(result.latency.max()), ".");
  return Figure(plot, "99 % of the requests took at most what stands above 99.", id);
}

std::string LatencyOverTime(const RunReport& run, const std::string& id) {
  constexpr absl::string_view kTitle = "Latency over time";
  const LoadResult& result = run.result;
  if (result.latency.count() == 0 || result.intervals.empty()) {
    return Nothing(kTitle, "No request succeeded.");
  }
  Plot plot{.title = std::string(kTitle),
            .x_title = "Time since the warm-up",
            .y_title = "Latency",
            .x = TimeRange(result),
            .y = {.kind = AxisRange::Kind::kLatency}};
  const auto add = [&](std::string name, int colour, Series::Stroke stroke,
                       absl::Duration Interval::*figure) {
    Series series{.name = std::move(name), .colour = colour, .stroke = stroke};
    for (const Interval& interval : PlottedIntervals(result)) {
      const double seconds =
          interval.succeeded > 0 ? absl::ToDoubleSeconds(interval.*figure) : kGap;
      series.points.push_back(
          {.x = Middle(interval),
           .y = seconds,
           .tooltip = At(interval, absl::StrCat(series.name, " ", FormatLatency(seconds)))});
    }
    plot.series.push_back(std::move(series));
  };
  add("max", 3, Series::Stroke::kDotted, &Interval::max);
  add("p99", 2, Series::Stroke::kDashed, &Interval::p99);
  add("p50", 1, Series::Stroke::kSolid, &Interval::p50);
  AxisRange unused;
  IncludePoints(plot.series, &unused, &plot.y);
  plot.description = absl::StrCat("Median, 99th percentile and largest latency of ",
                                  PlottedIntervals(result).size(), " stretches of the run.");
  return Figure(plot, "Of the requests that were to be sent at that time.", id);
}

std::string ThroughputOverTime(const RunReport& run, const std::string& id) {
  constexpr absl::string_view kTitle = "Throughput over time";
  const LoadResult& result = run.result;
  if (result.intervals.empty()) return Nothing(kTitle, "The run was over before it was measured.");
  Plot plot{.title = std::string(kTitle),
            .x_title = "Time since the warm-up",
            .y_title = "Requests/s",
            .x = TimeRange(result),
            .y = {.kind = AxisRange::Kind::kCount}};
  const auto add = [&](std::string name, int colour, Series::Stroke stroke,
                       int64_t Interval::*figure) {
    Series series{.name = std::move(name), .colour = colour, .stroke = stroke};
    for (const Interval& interval : PlottedIntervals(result)) {
      const double seconds = absl::ToDoubleSeconds(interval.length);
      const double rate = seconds > 0 ? static_cast<double>(interval.*figure) / seconds : kGap;
      series.points.push_back(
          {.x = Middle(interval),
           .y = rate,
           .tooltip = At(interval, absl::StrCat(series.name, " ", FormatNumber(rate), "/s"))});
    }
    plot.series.push_back(std::move(series));
  };
  if (run.loop == LoopKind::kOpen) add("offered", 5, Series::Stroke::kBand, &Interval::offered);
  add("good", 1, Series::Stroke::kSolid, &Interval::succeeded);
  if (result.failed > 0) add("failed", 2, Series::Stroke::kDotted, &Interval::failed);
  AxisRange unused;
  IncludePoints(plot.series, &unused, &plot.y);
  const Rates rates = RatesOf(result);
  plot.description =
      absl::StrCat("Over the whole run ", FormatNumber(rates.offered), " requests/s were offered, ",
                   FormatNumber(rates.good), " succeeded.");
  return Figure(plot,
                run.loop == LoopKind::kOpen
                    ? "Good requests were answered with OK. Each counts when it was to be sent."
                    : "Good requests were answered with OK. Each counts when it was sent.",
                id);
}

std::string TimeByStage(const RunReport& run, const std::string& id) {
  constexpr absl::string_view kTitle = "Time by stage";
  const StageMeans means = StageMeansOf(run.result);
  std::vector<BarPart> parts = {
      {.name = "receive", .colour = 1, .value = means.receive},
      {.name = "queue", .colour = 2, .value = means.queue},
      {.name = "upload", .colour = 3, .value = means.upload},
      {.name = "kernel", .colour = 4, .value = means.kernel},
      {.name = "download", .colour = 5, .value = means.download},
      {.name = "rest of compute", .colour = 6, .value = means.rest_of_compute},
      {.name = "send", .colour = 7, .value = means.send},
      {.name = "outside (client, network)", .colour = 8, .value = means.outside},
  };
  double whole = 0;
  for (const BarPart& part : parts) whole += part.value;
  if (!(whole > 0) || !std::isfinite(whole)) return Nothing(kTitle, "No request succeeded.");
  std::string rows;
  std::string description = "Means:";
  for (BarPart& part : parts) {
    const std::string share = absl::StrFormat("%.1f %%", 100 * part.value / whole);
    const std::string time = FormatLatency(part.value);
    part.tooltip = absl::StrCat(part.name, ": ", time, ", ", share);
    absl::StrAppend(&description, " ", part.name, " ", time, ";");
    absl::StrAppend(&rows, "<tr><th scope=\"row\"><span class=\"swatch g", part.colour,
                    "\"></span>", EscapeMarkup(part.name), "</th><td>", EscapeMarkup(time),
                    "</td><td>", share, "</td></tr>");
  }
  description.back() = '.';
  return absl::StrCat(
      "<figure class=\"card\">",
      Caption(kTitle, absl::StrCat("Means of a request: ", FormatLatency(whole),
                                   " from its send to its answer.")),
      RenderStackedBar(std::string(kTitle), description, parts, id),
      "<table class=\"stages\"><thead><tr><th scope=\"col\">Stage</th><th scope=\"col\">Mean</th>"
      "<th scope=\"col\">Share</th></tr></thead><tbody>",
      rows, "</tbody></table></figure>\n");
}

std::string LatencyByRate(const SweepReport& sweep, const std::string& id) {
  constexpr absl::string_view kTitle = "Latency by rate";
  Plot plot{.title = std::string(kTitle),
            .x_title = "Offered requests/s",
            .y_title = "Latency",
            .x = {.kind = AxisRange::Kind::kCount},
            .y = {.kind = AxisRange::Kind::kLatency}};
  const auto add = [&](std::string name, int colour, Series::Stroke stroke, double percent) {
    Series series{.name = std::move(name), .colour = colour, .stroke = stroke};
    for (const RatedRun& rated : ByRate(sweep)) {
      const double seconds = Percentile(rated.run->result, percent);
      series.points.push_back(
          {.x = rated.run->rate,
           .y = seconds,
           .tooltip = absl::StrCat(FormatNumber(rated.run->rate), " requests/s: ", series.name, " ",
                                   FormatLatency(seconds),
                                   rated.met ? ", objective met" : ", objective not met"),
           .hollow = !rated.met});
    }
    plot.series.push_back(std::move(series));
  };
  add("p99", 2, Series::Stroke::kDashed, 99);
  add("p50", 1, Series::Stroke::kSolid, 50);
  IncludePoints(plot.series, &plot.x, &plot.y);
  if (!(plot.y.most > 0)) return Nothing(kTitle, "No request succeeded at any rate.");
  const double slo = absl::ToDoubleSeconds(sweep.slo);
  if (slo > 0) {
    Include(slo, &plot.y);
    plot.lines.push_back({.value = slo, .label = "objective " + FormatLatency(slo)});
  }
  MarkBestRate(sweep, &plot);
  plot.description = sweep.best_rate.has_value()
                         ? absl::StrCat("The highest offered rate that met the objective is ",
                                        FormatNumber(*sweep.best_rate), " requests/s.")
                         : "No rate met the objective.";
  return Figure(plot, "A hollow point did not meet the objective.", id);
}

std::string ThroughputByRate(const SweepReport& sweep, const std::string& id) {
  constexpr absl::string_view kTitle = "Throughput by rate";
  std::vector<RatedRun> runs = ByRate(sweep);
  if (sweep.overload.has_value()) runs.push_back({&*sweep.overload, false});
  if (runs.empty()) return Nothing(kTitle, "No rate was driven.");
  Plot plot{.title = std::string(kTitle),
            .x_title = "Offered requests/s",
            .y_title = "Requests/s",
            .x = {.kind = AxisRange::Kind::kCount},
            .y = {.kind = AxisRange::Kind::kCount}};
  std::stable_sort(runs.begin(), runs.end(),
                   [](const RatedRun& a, const RatedRun& b) { return a.run->rate < b.run->rate; });
  const auto add = [&](std::string name, int colour, Series::Stroke stroke, auto figure) {
    Series series{.name = std::move(name), .colour = colour, .stroke = stroke};
    for (const RatedRun& rated : runs) {
      const double rate = figure(*rated.run);
      const bool overload = sweep.overload.has_value() && rated.run == &*sweep.overload;
      series.points.push_back(
          {.x = rated.run->rate,
           .y = rate,
           .tooltip = absl::StrCat(FormatNumber(rated.run->rate), " requests/s: ", series.name, " ",
                                   FormatNumber(rate), "/s", overload ? ", overload" : "")});
    }
    plot.series.push_back(std::move(series));
  };
  add("offered", 5, Series::Stroke::kBand, [](const RunReport& run) { return run.rate; });
  add("good", 1, Series::Stroke::kSolid,
      [](const RunReport& run) { return RatesOf(run.result).good; });
  add("failed", 2, Series::Stroke::kDotted, [](const RunReport& run) {
    const double seconds = absl::ToDoubleSeconds(run.result.elapsed);
    return seconds > 0 ? static_cast<double>(run.result.failed) / seconds : kGap;
  });
  IncludePoints(plot.series, &plot.x, &plot.y);
  MarkBestRate(sweep, &plot);
  plot.description = "What of the offered rate was answered with OK, and what failed.";
  return Figure(plot,
                sweep.overload.has_value()
                    ? "The last point is the overload, at twice the best rate."
                    : "What of the offered rate was answered with OK.",
                id);
}

}  // namespace flashbias::client
