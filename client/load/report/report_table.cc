#include "client/load/report/report_table.h"

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "client/load/report/markup_text.h"
#include "client/load/report/run_figures.h"

namespace flashbias::client {
namespace {

std::string Milliseconds(double seconds) { return absl::StrFormat("%.3f ms", seconds * 1e3); }
std::string Milliseconds(absl::Duration d) { return Milliseconds(absl::ToDoubleSeconds(d)); }

std::string Seconds(absl::Duration d) {
  return absl::FormatDuration(absl::Trunc(d, absl::Milliseconds(1)));
}

// One line of the report: a name and what belongs to it.
void Line(absl::string_view name, absl::string_view text, std::string* out) {
  absl::StrAppendFormat(out, "%-14s%s\n", name, text);
}

std::string Percentiles(const LatencyHistogram& latency) {
  if (latency.count() == 0) return "-";
  return absl::StrFormat("mean %s, p50 %s, p90 %s, p99 %s, p99.9 %s, max %s",
                         Milliseconds(latency.Mean()), Milliseconds(latency.Percentile(50)),
                         Milliseconds(latency.Percentile(90)), Milliseconds(latency.Percentile(99)),
                         Milliseconds(latency.Percentile(99.9)), Milliseconds(latency.max()));
}

std::string Short(const LatencyHistogram& latency) {
  if (latency.count() == 0) return "-";
  return absl::StrFormat("p50 %s, p99 %s, max %s", Milliseconds(latency.Percentile(50)),
                         Milliseconds(latency.Percentile(99)), Milliseconds(latency.max()));
}

void AddSetup(const LoadReport& report, std::string* out) {
  for (size_t n = 0; n < report.targets.size(); ++n) {
    const std::string server =
        n < report.servers.size() ? DescribeServer(report.servers[n]) : std::string("unknown");
    Line("server", PrintableText(absl::StrCat(report.targets[n], ", ", server)), out);
  }
  for (const EntryReport& entry : report.entries) {
    const std::string share =
        report.entries.size() > 1 ? absl::StrFormat("%.1f %% ", 100 * entry.share) : "";
    Line("request",
         absl::StrFormat("%s%s, at most %d bytes to the server, %d back", share,
                         PrintableText(entry.name), entry.request_bytes, entry.response_bytes),
         out);
  }
  Line("transport",
       absl::StrFormat("%s over %d connections, %d client cores", report.transport,
                       report.connections, report.client_cores),
       out);
}

void AddLoad(const LoadReport& report, const RunReport& run, std::string* out) {
  std::string warmup = DescribeWarmup(report, Seconds(report.warmup));
  if (!warmup.empty()) warmup = ", after a warm-up of " + warmup;
  if (run.loop == LoopKind::kClosed) {
    Line("load",
         absl::StrFormat("capacity (closed loop): %d callers, %s%s", run.concurrency,
                         Seconds(run.result.elapsed), warmup),
         out);
  } else {
    Line("load",
         absl::StrFormat("open loop: %s%s arrivals, at most %d outstanding, %s%s",
                         run.rate > 0 ? absl::StrFormat("%.2f requests/s, ", run.rate) : "",
                         report.arrivals, run.concurrency, Seconds(run.result.elapsed), warmup),
         out);
  }
}

void AddVerdict(const RunReport& run, std::string* out) {
  const absl::string_view valid = run.loop == LoopKind::kClosed ? "capacity"
                                  : run.verdict.valid()         ? "valid"
                                                                : "INVALID";
  Line("verdict", absl::StrCat(valid, ", ", run.verdict.steady ? "steady" : "not steady"), out);
  for (const std::string& reason : run.verdict.reasons) Line("", PrintableText(reason), out);
}

void AddCounts(const LoadResult& result, std::string* out) {
  std::string counts = absl::StrCat(result.succeeded, " succeeded, ", result.failed, " failed");
  if (result.overflowed > 0) {
    absl::StrAppend(&counts, ", of these ", result.overflowed,
                    " not sent because too many were outstanding");
  }
  Line("requests", counts, out);
  for (const auto& [code, status] : result.statuses) {
    if (code == absl::StatusCode::kOk) continue;
    Line("",
         absl::StrCat(absl::StatusCodeToString(code), ": ", status.count,
                      ", first: ", PrintableText(status.first_message)),
         out);
  }
}

void AddGroups(const LoadReport& report, const LoadResult& result, std::string* out) {
  const auto add = [out](absl::string_view kind, const std::string& name,
                         const GroupResult& group) {
    Line(kind,
         absl::StrCat(PrintableText(name), ": ", group.succeeded, " succeeded, ", group.failed,
                      " failed, ", Short(group.latency)),
         out);
  };
  for (size_t n = 0; result.entries.size() > 1 && n < result.entries.size(); ++n) {
    add("of requests", EntryName(report, n), result.entries[n]);
  }
  for (size_t n = 0; result.targets.size() > 1 && n < result.targets.size(); ++n) {
    add("of server", TargetName(report, n), result.targets[n]);
  }
}

void AddStages(const LoadResult& result, std::string* out) {
  const StageMeans means = StageMeansOf(result);
  Line("server stages",
       absl::StrFormat("receive %s, queue %s, compute %s, send %s (means); outside %s",
                       Milliseconds(means.receive), Milliseconds(means.queue),
                       Milliseconds(means.compute), Milliseconds(means.send),
                       Milliseconds(means.outside)),
       out);
  Line("of compute",
       absl::StrFormat("upload %s, kernel %s, download %s (means)", Milliseconds(means.upload),
                       Milliseconds(means.kernel), Milliseconds(means.download)),
       out);
  Line("batches", absl::StrFormat("%.2f requests on average", MeanBatch(result.stages)), out);
  Line("tiles",
       absl::StrFormat("%.1f %% skipped (%d computed, %d skipped)",
                       100 * SkippedShare(result.stages), result.stages.tiles_computed,
                       result.stages.tiles_skipped),
       out);
}

void AddCpu(const RunReport& run, std::string* out) {
  const auto text = [](std::optional<double> figure) {
    return figure.has_value() ? absl::StrFormat("%.3f ns/byte", *figure)
                              : std::string("not measured");
  };
  Line("CPU",
       absl::StrCat("client ", text(ClientCpuPerByte(run)), ", servers ",
                    text(ServerCpuPerByte(run))),
       out);
}

void AddVerification(const VerifyReport& verify, std::string* out) {
  std::string text =
      absl::StrFormat("%d answers (%d rows), %d wrong", verify.answers, verify.rows, verify.wrong);
  if (verify.compared_o()) {
    absl::StrAppendFormat(&text, "; largest relative error of o %.2e", verify.max_o_error);
    if (verify.compared_lse()) absl::StrAppendFormat(&text, ", of lse %.2e", verify.max_lse_error);
    absl::StrAppendFormat(&text, ", limit %.0e", verify.limit);
  }
  if (verify.compared_gradients()) {
    absl::StrAppendFormat(&text, "; largest relative error of dq, dk and dv %.2e, limit %.0e",
                          verify.max_gradient_error, verify.gradient_limit);
  }
  Line("verified", text, out);
}

void AddRun(const LoadReport& report, const RunReport& run, std::string* out) {
  const LoadResult& result = run.result;
  const Rates rates = RatesOf(result);
  AddLoad(report, run, out);
  AddVerdict(run, out);
  AddCounts(result, out);
  if (run.loop == LoopKind::kOpen) {
    Line("rates",
         absl::StrFormat("offered %.2f/s, achieved %.2f/s, good %.2f/s", rates.offered,
                         rates.achieved, rates.good),
         out);
  }
  Line("throughput",
       absl::StrFormat("%.2f requests/s, %.0f tokens/s, %.4f GB/s in and out", rates.good,
                       TokensPerSecond(result), BytesPerSecond(result) / 1e9),
       out);
  Line("latency", Percentiles(result.latency), out);
  if (run.loop == LoopKind::kOpen) {
    Line("service", Percentiles(result.service), out);
    Line("lag", Percentiles(result.lag), out);
  }
  AddGroups(report, result, out);
  AddStages(result, out);
  AddCpu(run, out);
  if (run.verify.has_value()) AddVerification(*run.verify, out);
}

std::string StepLine(const RunReport& step, absl::string_view outcome) {
  const LoadResult& result = step.result;
  const Rates rates = RatesOf(result);
  const auto latency = [&](double percent) {
    return result.latency.count() == 0 ? std::string("-")
                                       : Milliseconds(result.latency.Percentile(percent));
  };
  return absl::StrFormat("%12.2f %12.2f %12.2f %14s %14s %8d  %s\n", step.rate, rates.achieved,
                         rates.good, latency(50), latency(99), result.failed, outcome);
}

void AddSweep(const LoadReport& report, const SweepReport& sweep, std::string* out) {
  Line("load",
       absl::StrFormat("sweep of open loops, %s arrivals; objective: p99 latency at most %s",
                       report.arrivals, Milliseconds(sweep.slo)),
       out);
  absl::StrAppendFormat(out, "\n%12s %12s %12s %14s %14s %8s\n", "offered/s", "achieved/s",
                        "good/s", "p50", "p99", "failed");
  for (size_t n = 0; n < sweep.steps.size(); ++n) {
    absl::StrAppend(out, StepLine(sweep.steps[n], PrintableText(StepOutcome(sweep, n))));
  }
  if (sweep.overload.has_value()) absl::StrAppend(out, StepLine(*sweep.overload, "overload"));
  absl::StrAppend(out, "\n");

  if (sweep.best_rate.has_value()) {
    Line("best rate", absl::StrFormat("%.2f requests/s", *sweep.best_rate), out);
  } else {
    Line("best rate", "none: no rate met the objective", out);
  }
  if (sweep.bound_rate.has_value()) {
    Line("bound",
         absl::StrFormat("%.2f requests/s %s", *sweep.bound_rate,
                         BoundedByGenerator(sweep)
                             ? "could not be sent in time; the server may take more"
                             : "did not meet it"),
         out);
  } else {
    Line("bound", "none: the highest rate driven met it", out);
  }
  if (sweep.overload.has_value()) {
    const Rates rates = RatesOf(sweep.overload->result);
    const double share = rates.offered > 0 ? 100 * rates.good / rates.offered : 0;
    Line("overload",
         absl::StrFormat("at %.2f requests/s %.2f good/s (%.1f %% of those offered), p99 %s",
                         sweep.overload->rate, rates.good, share,
                         Milliseconds(sweep.overload->result.latency.Percentile(99))),
         out);
  }
  if (!sweep.best_rate.has_value() || BestStep(sweep) == nullptr) return;
  absl::StrAppend(out, "\nat the best rate\n");
  AddRun(report, *BestStep(sweep), out);
}

double PerSecond(int64_t count, absl::Duration period) {
  const double seconds = absl::ToDoubleSeconds(period);
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

}  // namespace

std::string FormatTable(const LoadReport& report) {
  std::string out;
  AddSetup(report, &out);
  if (report.run.has_value()) AddRun(report, *report.run, &out);
  if (report.sweep.has_value()) AddSweep(report, *report.sweep, &out);
  return out;
}

std::string FormatProgress(const LoadProgress& progress) {
  const auto rate = [&](int64_t count) { return PerSecond(count, progress.period); };
  std::string latency = "p50 -, p99 -";
  if (progress.succeeded > 0) {
    latency =
        absl::StrCat("p50 ", Milliseconds(progress.p50), ", p99 ", Milliseconds(progress.p99));
  }
  return absl::StrFormat(
      "%s %.1f s: offered %.1f/s, achieved %.1f/s, good %.1f/s, %s, %d errors, %.3f GB/s, %d "
      "outstanding",
      progress.warming_up ? "warm-up" : "run", absl::ToDoubleSeconds(progress.elapsed),
      rate(progress.offered), rate(progress.succeeded + progress.failed), rate(progress.succeeded),
      latency, progress.failed, rate(progress.bytes) / 1e9, progress.outstanding);
}

}  // namespace flashbias::client
