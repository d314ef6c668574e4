#include "client/load/report/report_html.h"

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/load/report/html_summary.h"
#include "client/load/report/html_table.h"
#include "client/load/report/human_units.h"
#include "client/load/report/markup_text.h"
#include "client/load/report/report_plots.h"
#include "client/load/report/report_style.h"
#include "client/load/report/run_figures.h"

namespace flashbias::client {
namespace {

using Column = HtmlTable::Column;

std::string Cell(const LatencyHistogram& latency, absl::Duration duration) {
  return latency.count() == 0 ? "-" : FormatLatency(duration);
}

std::string Cell(const LatencyHistogram& latency, double percent) {
  return Cell(latency, latency.Percentile(percent));
}

std::string PercentileTable(const RunReport& run) {
  const LoadResult& result = run.result;
  HtmlTable table({{"Percentile", Column::kText}, {"Latency"}, {"Service"}, {"Lag"}});
  const auto add = [&](std::string name, auto figure) {
    table.AddRow(
        {std::move(name), figure(result.latency), figure(result.service), figure(result.lag)});
  };
  add("min", [](const LatencyHistogram& h) { return Cell(h, h.min()); });
  for (const NamedPercentile& percentile : ReportedPercentiles()) {
    add(percentile.name, [&](const LatencyHistogram& h) { return Cell(h, percentile.percent); });
  }
  add("max", [](const LatencyHistogram& h) { return Cell(h, h.max()); });
  add("mean", [](const LatencyHistogram& h) { return Cell(h, h.Mean()); });
  add("standard deviation",
      [](const LatencyHistogram& h) { return Cell(h, h.StandardDeviation()); });
  return table.ToHtml("Percentiles");
}

std::string StatusTable(const LoadResult& result) {
  HtmlTable table(
      {{"Status", Column::kText}, {"Count"}, {"p50"}, {"p99"}, {"First message", Column::kText}});
  for (const auto& [code, status] : result.statuses) {
    table.AddRow({absl::StatusCodeToString(code), FormatCount(status.count),
                  Cell(status.latency, 50), Cell(status.latency, 99), status.first_message});
  }
  if (result.overflowed > 0) {
    table.AddRow({"not sent", FormatCount(result.overflowed), "-", "-",
                  "too many requests were outstanding"});
  }
  return table.empty() ? "" : table.ToHtml("Statuses");
}

std::string GroupTable(absl::string_view caption, std::string heading,
                       const std::vector<std::string>& names,
                       const std::vector<GroupResult>& groups) {
  HtmlTable table({{std::move(heading), Column::kText},
                   {"Succeeded"},
                   {"Failed"},
                   {"p50"},
                   {"p99"},
                   {"p99.9"},
                   {"Max"}});
  for (size_t n = 0; n < groups.size(); ++n) {
    const GroupResult& group = groups[n];
    table.AddRow({names[n], FormatCount(group.succeeded), FormatCount(group.failed),
                  Cell(group.latency, 50), Cell(group.latency, 99), Cell(group.latency, 99.9),
                  Cell(group.latency, 100)});
  }
  return table.empty() ? "" : table.ToHtml(caption);
}

std::string WorkTable(const RunReport& run) {
  const LoadResult& result = run.result;
  HtmlTable table({{"Work", Column::kText}, {"Figure"}});
  table.AddRow({"requests offered", FormatCount(result.offered)});
  table.AddRow({"requests in a batch, on average", FormatNumber(MeanBatch(result.stages))});
  table.AddRow({"tokens/s", FormatNumber(TokensPerSecond(result))});
  table.AddRow({"tiles computed", FormatCount(result.stages.tiles_computed)});
  table.AddRow({"tiles skipped", FormatCount(result.stages.tiles_skipped)});
  table.AddRow(
      {"share of tiles skipped", absl::StrFormat("%.1f %%", 100 * SkippedShare(result.stages))});
  table.AddRow(
      {"CPU time of the client", absl::StrCat(FormatNumber(run.client_cpu_seconds), " s")});
  table.AddRow(
      {"CPU time of the servers", run.server_cpu_seconds.has_value()
                                      ? absl::StrCat(FormatNumber(*run.server_cpu_seconds), " s")
                                      : "not measured"});
  return table.ToHtml("Work");
}

std::string VerificationTable(const VerifyReport& verify) {
  HtmlTable table({{"Compared with the reference", Column::kText}, {"Figure"}, {"Limit"}});
  table.AddRow({"answers", FormatCount(verify.answers), ""});
  table.AddRow({"rows", FormatCount(verify.rows), ""});
  table.AddRow({"wrong answers", FormatCount(verify.wrong), "0"});
  const std::string limit = absl::StrFormat("%.1e", verify.limit);
  if (verify.compared_o()) {
    table.AddRow(
        {"largest relative error of o", absl::StrFormat("%.2e", verify.max_o_error), limit});
  }
  if (verify.compared_lse()) {
    table.AddRow(
        {"largest relative error of lse", absl::StrFormat("%.2e", verify.max_lse_error), limit});
  }
  if (verify.compared_gradients()) {
    table.AddRow({"largest relative error of gradients",
                  absl::StrFormat("%.2e", verify.max_gradient_error),
                  absl::StrFormat("%.1e", verify.gradient_limit)});
  }
  return table.ToHtml("Verification");
}

std::string GrowthTable(const MetricSamples& growth) {
  if (growth.empty()) return "";
  HtmlTable table({{"Counter", Column::kText}, {"Growth"}});
  for (const auto& [name, value] : growth) table.AddRow({name, FormatNumber(value)});
  return absl::StrCat("<details class=\"card table\"><summary>Growth of the servers' counters (",
                      growth.size(), ")</summary>", table.ToHtml("Warm-up included"),
                      "</details>\n");
}

template <typename NameOf>
std::vector<std::string> NamesOf(size_t count, NameOf name_of) {
  std::vector<std::string> names;
  for (size_t n = 0; n < count; ++n) names.push_back(name_of(n));
  return names;
}

// Plots and tables of one run.
std::string RunHtml(const LoadReport& report, const RunReport& run, const std::string& id) {
  const LoadResult& result = run.result;
  std::string out =
      absl::StrCat("<div class=\"figures\">\n", LatencyByPercentile(run, id + "-percentiles"),
                   TimeByStage(run, id + "-stages"), LatencyOverTime(run, id + "-latency"),
                   ThroughputOverTime(run, id + "-throughput"), "</div>\n<div class=\"tables\">\n");
  absl::StrAppend(
      &out, "<div class=\"figures\">\n", PercentileTable(run), "<div class=\"stack\">\n",
      WorkTable(run), run.verify.has_value() ? VerificationTable(*run.verify) : "",
      "</div>\n</div>\n", StatusTable(result),
      GroupTable("Requests of the mix", "Entry",
                 NamesOf(result.entries.size(), [&](size_t n) { return EntryName(report, n); }),
                 result.entries),
      GroupTable("Servers", "Target",
                 NamesOf(result.targets.size(), [&](size_t n) { return TargetName(report, n); }),
                 result.targets),
      GrowthTable(run.server_growth), "</div>\n");
  return out;
}

void AddStep(const RunReport& step, std::string outcome, HtmlTable* table) {
  const LoadResult& result = step.result;
  const Rates rates = RatesOf(result);
  table->AddRow({FormatNumber(step.rate), FormatNumber(rates.achieved), FormatNumber(rates.good),
                 FormatCount(result.failed), Cell(result.latency, 50), Cell(result.latency, 99),
                 Cell(result.lag, 99), std::move(outcome)});
}

std::string SweepHtml(const LoadReport& report, const SweepReport& sweep) {
  std::string out = absl::StrCat("<h2>Rates</h2>\n<div class=\"figures\">\n",
                                 LatencyByRate(sweep, "sweep-latency"),
                                 ThroughputByRate(sweep, "sweep-throughput"), "</div>\n");
  HtmlTable table({{"Offered/s"},
                   {"Achieved/s"},
                   {"Good/s"},
                   {"Failed"},
                   {"p50"},
                   {"p99"},
                   {"p99 lag"},
                   {"Objective", Column::kText}});
  for (size_t n = 0; n < sweep.steps.size(); ++n) {
    AddStep(sweep.steps[n], StepOutcome(sweep, n), &table);
  }
  if (sweep.overload.has_value()) AddStep(*sweep.overload, "overload", &table);
  if (!table.empty()) {
    absl::StrAppend(&out, "<div class=\"tables\">\n", table.ToHtml("Rates in the order driven"),
                    "</div>\n");
  }
  if (const RunReport* best = BestStep(sweep); best != nullptr) {
    absl::StrAppend(&out, "<h2>",
                    sweep.best_rate.has_value() ? "At the best rate, " : "At the first rate, ",
                    EscapeMarkup(FormatNumber(best->rate)), " requests/s</h2>\n",
                    VerdictHtml(*best), KeyFiguresHtml(*best), RunHtml(report, *best, "best"));
  }
  if (sweep.overload.has_value()) {
    absl::StrAppend(
        &out, "<h2>In overload, ", EscapeMarkup(FormatNumber(sweep.overload->rate)),
        " requests/s</h2>\n<p class=\"note\">At twice the best rate a server is not expected to "
        "keep up: what counts is how much it answers with OK all the same.</p>\n",
        KeyFiguresHtml(*sweep.overload), RunHtml(report, *sweep.overload, "overload"));
  }
  return out;
}

}  // namespace

std::string FormatHtml(const LoadReport& report) {
  std::string out = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>",
      EscapeMarkup(ReportTitle(report)), " - flashbias-load</title>\n<style>", kReportStyle,
      "</style>\n</head>\n<body>\n<main>\n", SummaryHtml(report));
  if (report.run.has_value()) {
    absl::StrAppend(&out, "<h2>Measurements</h2>\n", RunHtml(report, *report.run, "run"));
  }
  if (report.sweep.has_value()) absl::StrAppend(&out, SweepHtml(report, *report.sweep));
  absl::StrAppend(&out, "</main>\n</body>\n</html>\n");
  return out;
}

}  // namespace flashbias::client
