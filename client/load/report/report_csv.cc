#include "client/load/report/report_csv.h"

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "client/load/report/run_figures.h"

namespace flashbias::client {
namespace {

using Row = std::vector<std::string>;

// Empty where there is no number.
std::string Field(double value) {
  return std::isfinite(value) ? absl::StrFormat("%.9g", value) : "";
}
std::string Field(std::optional<double> value) { return value.has_value() ? Field(*value) : ""; }
std::string Field(absl::Duration duration) { return Field(absl::ToDoubleSeconds(duration)); }
std::string Field(int64_t value) { return absl::StrCat(value); }
std::string Field(bool value) { return value ? "true" : "false"; }

std::string Quoted(absl::string_view text) {
  if (text.find_first_of(",\"\r\n") == absl::string_view::npos) return std::string(text);
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\"", "\"\""}}), "\"");
}

void AppendRow(const Row& row, std::string* out) {
  absl::StrAppend(out,
                  absl::StrJoin(row, ",",
                                [](std::string* to, const std::string& field) {
                                  absl::StrAppend(to, Quoted(field));
                                }),
                  "\r\n");
}

std::string FormatIntervals(const RunReport& run) {
  std::string out;
  AppendRow({"start_seconds", "length_seconds", "offered", "succeeded", "failed", "bytes",
             "p50_seconds", "p99_seconds", "max_seconds"},
            &out);
  for (const Interval& interval : run.result.intervals) {
    const bool any = interval.succeeded > 0;
    AppendRow({Field(interval.start), Field(interval.length), Field(interval.offered),
               Field(interval.succeeded), Field(interval.failed), Field(interval.bytes),
               any ? Field(interval.p50) : "", any ? Field(interval.p99) : "",
               any ? Field(interval.max) : ""},
              &out);
  }
  return out;
}

Row StepRow(absl::string_view kind, const RunReport& run, std::optional<bool> met) {
  const LoadResult& result = run.result;
  const Rates rates = RatesOf(result);
  Row row = {
      std::string(kind),          Field(run.rate),           met.has_value() ? Field(*met) : "",
      Field(run.verdict.valid()), Field(run.verdict.steady), Field(rates.offered),
      Field(rates.achieved),      Field(rates.good),         Field(BytesPerSecond(result)),
      Field(result.offered),      Field(result.succeeded),   Field(result.failed),
      Field(result.overflowed)};
  for (const NamedPercentile& percentile : ReportedPercentiles()) {
    row.push_back(result.latency.count() > 0 ? Field(result.latency.Percentile(percentile.percent))
                                             : "");
  }
  row.push_back(result.latency.count() > 0 ? Field(result.latency.max()) : "");
  row.push_back(result.service.count() > 0 ? Field(result.service.Percentile(99)) : "");
  row.push_back(result.lag.count() > 0 ? Field(result.lag.Percentile(99)) : "");
  row.push_back(Field(ClientCpuPerByte(run)));
  row.push_back(Field(ServerCpuPerByte(run)));
  row.push_back(absl::StrJoin(run.verdict.reasons, "; "));
  return row;
}

std::string FormatSteps(const SweepReport& sweep) {
  Row names = {"kind",
               "rate",
               "met",
               "valid",
               "steady",
               "offered_per_second",
               "achieved_per_second",
               "good_per_second",
               "bytes_per_second",
               "offered",
               "succeeded",
               "failed",
               "overflowed"};
  for (const NamedPercentile& percentile : ReportedPercentiles()) {
    names.push_back(absl::StrCat(percentile.name, "_seconds"));
  }
  for (const char* name : {"max_seconds", "service_p99_seconds", "lag_p99_seconds",
                           "client_cpu_ns_per_byte", "server_cpu_ns_per_byte", "reasons"}) {
    names.emplace_back(name);
  }
  std::string out;
  AppendRow(names, &out);
  for (size_t n = 0; n < sweep.steps.size(); ++n) {
    AppendRow(StepRow("step", sweep.steps[n], n < sweep.met.size() && sweep.met[n]), &out);
  }
  if (sweep.overload.has_value()) {
    AppendRow(StepRow("overload", *sweep.overload, std::nullopt), &out);
  }
  return out;
}

}  // namespace

std::string FormatCsv(const LoadReport& report) {
  if (report.sweep.has_value()) return FormatSteps(*report.sweep);
  return FormatIntervals(report.run.value_or(RunReport{}));
}

}  // namespace flashbias::client
