#include "client/load/report/html_summary.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/load/report/human_units.h"
#include "client/load/report/markup_text.h"
#include "client/load/report/run_figures.h"

namespace flashbias::client {
namespace {

std::string PerSecond(double rate) { return absl::StrCat(FormatNumber(rate), "/s"); }

std::string Badge(absl::string_view kind, absl::string_view text) {
  return absl::StrCat("<span class=\"badge ", kind, "\">", EscapeMarkup(text), "</span>");
}

std::string KeyFigure(absl::string_view name, absl::string_view value, absl::string_view note) {
  return absl::StrCat("<div class=\"card\"><dt>", EscapeMarkup(name), "</dt><dd>",
                      EscapeMarkup(value), "<small>", EscapeMarkup(note), "</small></dd></div>\n");
}

std::string LatencyOf(const LatencyHistogram& latency, double percent) {
  return latency.count() == 0 ? "-" : FormatLatency(latency.Percentile(percent));
}

std::string VerifyBadge(const VerifyReport& verify) {
  if (verify.wrong > 0) {
    return Badge("bad", absl::StrCat("✕ ", FormatCount(verify.wrong), " of ",
                                     FormatCount(verify.answers), " verified answers wrong"));
  }
  if (verify.answers == 0) return Badge("warn", "! No answer verified");
  return Badge("good", absl::StrCat("✓ ", FormatCount(verify.answers), " answers verified"));
}

std::string Reasons(const std::vector<std::string>& reasons) {
  if (reasons.empty()) return "";
  std::string out = "<ul class=\"reasons\">";
  for (const std::string& reason : reasons) {
    absl::StrAppend(&out, "<li>", EscapeMarkup(reason), "</li>");
  }
  return out + "</ul>\n";
}

std::string Cpu(std::optional<double> figure) {
  return figure.has_value() ? absl::StrCat(FormatNumber(*figure), " ns/B") : "-";
}

std::string SweepKeyFigures(const SweepReport& sweep) {
  std::string out = "<dl class=\"figures-of-run\">\n";
  const auto add = [&](absl::string_view name, absl::string_view value, absl::string_view note) {
    absl::StrAppend(&out, KeyFigure(name, value, note));
  };
  add("Best rate", sweep.best_rate.has_value() ? PerSecond(*sweep.best_rate) : "none",
      absl::StrCat("with a p99 of at most ", FormatLatency(sweep.slo)));
  add("Bound", sweep.bound_rate.has_value() ? PerSecond(*sweep.bound_rate) : "none",
      !sweep.bound_rate.has_value() ? "no higher rate missed it"
      : BoundedByGenerator(sweep)   ? "could not be sent in time"
                                    : "the lowest above that missed it");
  if (const RunReport* best = BestStep(sweep); best != nullptr && sweep.best_rate.has_value()) {
    add("p50 latency", LatencyOf(best->result.latency, 50), "at the best rate");
    add("p99 latency", LatencyOf(best->result.latency, 99), "at the best rate");
    add("Data", FormatByteRate(BytesPerSecond(best->result)), "in and out, at the best rate");
  }
  if (sweep.overload.has_value()) {
    const LoadResult& result = sweep.overload->result;
    const Rates rates = RatesOf(result);
    const double share = rates.offered > 0 ? 100 * rates.good / rates.offered : 0;
    add("Goodput in overload", PerSecond(rates.good),
        absl::StrFormat("%.1f %% of %s offered", share, PerSecond(rates.offered)));
    add("p99 in overload", LatencyOf(result.latency, 99), "of what was answered with OK");
  }
  add("Steps", FormatCount(static_cast<int64_t>(sweep.steps.size())),
      absl::StrCat(std::count(sweep.met.begin(), sweep.met.end(), true), " met the objective"));
  return out + "</dl>\n";
}

std::string SweepVerdict(const SweepReport& sweep) {
  std::string out = "<p class=\"badges\">";
  if (sweep.best_rate.has_value()) {
    absl::StrAppend(&out, Badge("good", absl::StrCat("✓ Best rate ", PerSecond(*sweep.best_rate))));
  } else {
    absl::StrAppend(&out, Badge("bad", "✕ No rate met the objective"));
  }
  VerifyReport verify;
  bool asked = false;
  const auto add = [&](const RunReport& run) {
    if (!run.verify.has_value()) return;
    asked = true;
    verify.answers += run.verify->answers;
    verify.wrong += run.verify->wrong;
  };
  for (const RunReport& step : sweep.steps) add(step);
  if (sweep.overload.has_value()) add(*sweep.overload);
  if (asked) absl::StrAppend(&out, VerifyBadge(verify));
  return out + "</p>\n";
}

void Define(absl::string_view term, absl::string_view html, std::string* out) {
  absl::StrAppend(out, "<dt>", term, "</dt><dd>", html, "</dd>\n");
}

std::string DescribeLoad(const LoadReport& report) {
  std::string warmup = DescribeWarmup(report, FormatSpan(report.warmup));
  if (!warmup.empty()) warmup = absl::StrCat(", after a warm-up of ", warmup);
  if (report.sweep.has_value()) {
    return absl::StrCat("open loops at rising rates, ", report.arrivals, " arrivals", warmup);
  }
  if (!report.run.has_value()) return "none";
  const RunReport& run = *report.run;
  const std::string measured = absl::StrCat(FormatSpan(run.result.elapsed), warmup);
  if (run.loop == LoopKind::kClosed) {
    return absl::StrCat("closed loop of ", run.concurrency, " callers, ", measured);
  }
  const std::string rate =
      run.rate > 0 ? absl::StrCat(FormatNumber(run.rate), " requests/s, ") : "";
  return absl::StrCat("open loop, ", rate, report.arrivals, " arrivals, at most ", run.concurrency,
                      " outstanding, ", measured);
}

std::string Setup(const LoadReport& report) {
  std::string out = "<h2>What was run</h2>\n<div class=\"card\"><dl class=\"setup\">\n";
  Define("Command", absl::StrCat("<code>", EscapeMarkup(report.command), "</code>"), &out);
  Define("Load", EscapeMarkup(DescribeLoad(report)), &out);
  for (const EntryReport& entry : report.entries) {
    const std::string share =
        report.entries.size() > 1 ? absl::StrFormat("%.1f %%: ", 100 * entry.share) : "";
    Define(
        "Requests",
        EscapeMarkup(absl::StrCat(
            share, entry.name, " (at most ", FormatBytes(static_cast<double>(entry.request_bytes)),
            " to the server, ", FormatBytes(static_cast<double>(entry.response_bytes)), " back)")),
        &out);
  }
  for (size_t n = 0; n < report.targets.size(); ++n) {
    const std::string server = n < report.servers.size() ? DescribeServer(report.servers[n]) : "";
    Define(
        "Server",
        absl::StrCat("<code>", EscapeMarkup(report.targets[n]), "</code> ", EscapeMarkup(server)),
        &out);
  }
  Define("Transport",
         EscapeMarkup(absl::StrCat(report.transport, " over ", report.connections,
                                   report.connections == 1 ? " connection" : " connections")),
         &out);
  Define("Client",
         EscapeMarkup(absl::StrCat("flashbias-load ", report.version, ", ", report.client_cores,
                                   report.client_cores == 1 ? " core" : " cores", ", seed ",
                                   report.seed)),
         &out);
  return out + "</dl></div>\n";
}

}  // namespace

std::string ReportTitle(const LoadReport& report) {
  if (report.sweep.has_value()) {
    return absl::StrCat("Highest rate with a p99 latency of at most ",
                        FormatLatency(report.sweep->slo));
  }
  if (!report.run.has_value()) return "No load was driven";
  if (report.run->loop == LoopKind::kClosed) {
    return absl::StrCat("Capacity with ", report.run->concurrency, " callers");
  }
  if (report.run->rate == 0) return "Open loop by the times of a trace";
  return absl::StrCat("Open loop at ", FormatNumber(report.run->rate), " requests/s");
}

std::string VerdictHtml(const RunReport& run) {
  std::string out = "<p class=\"badges\">";
  if (run.loop == LoopKind::kClosed) {
    absl::StrAppend(&out, Badge("plain", "Capacity"));
  } else {
    absl::StrAppend(&out,
                    run.verdict.valid() ? Badge("good", "✓ Valid") : Badge("bad", "✕ Invalid"));
  }
  absl::StrAppend(&out,
                  run.verdict.steady ? Badge("good", "✓ Steady") : Badge("warn", "! Not steady"));
  if (run.verify.has_value()) absl::StrAppend(&out, VerifyBadge(*run.verify));
  return absl::StrCat(out, "</p>\n", Reasons(run.verdict.reasons));
}

std::string KeyFiguresHtml(const RunReport& run) {
  const LoadResult& result = run.result;
  const Rates rates = RatesOf(result);
  const int64_t all = result.succeeded + result.failed;
  const double share =
      all > 0 ? 100 * static_cast<double>(result.failed) / static_cast<double>(all) : 0;
  std::string failed = absl::StrFormat("%.2f %% of %s", share, FormatCount(all));
  if (result.overflowed > 0) {
    absl::StrAppend(&failed, "; ", FormatCount(result.overflowed), " not sent");
  }
  std::string out = "<dl class=\"figures-of-run\">\n";
  const auto add = [&](absl::string_view name, absl::string_view value, absl::string_view note) {
    absl::StrAppend(&out, KeyFigure(name, value, note));
  };
  if (run.loop == LoopKind::kOpen) {
    add("Good rate", PerSecond(rates.good),
        absl::StrCat("of ", PerSecond(rates.offered), " offered, ", PerSecond(rates.achieved),
                     " achieved"));
  } else {
    add("Capacity", PerSecond(rates.good), "answered with OK");
  }
  add("p50 latency", LatencyOf(result.latency, 50),
      absl::StrCat("p90 ", LatencyOf(result.latency, 90)));
  add("p99 latency", LatencyOf(result.latency, 99),
      absl::StrCat("p99.9 ", LatencyOf(result.latency, 99.9), ", max ",
                   LatencyOf(result.latency, 100)));
  add("Failed", FormatCount(result.failed), failed);
  add("Data", FormatByteRate(BytesPerSecond(result)), "of tensors in and out");
  if (run.loop == LoopKind::kOpen) {
    add("p99 lag", LatencyOf(result.lag, 99), "sent later than intended");
  } else {
    add("Tokens", PerSecond(TokensPerSecond(result)), "queries");
  }
  add("CPU of the client", Cpu(ClientCpuPerByte(run)), "of tensors");
  add("CPU of the servers", Cpu(ServerCpuPerByte(run)),
      run.server_cpu_seconds.has_value() ? "of tensors" : "not measured");
  return out + "</dl>\n";
}

std::string SummaryHtml(const LoadReport& report) {
  std::string out = absl::StrCat(
      "<header>\n<p class=\"eyebrow\">flashbias-load ", EscapeMarkup(report.version), " · ",
      absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", report.started, absl::UTCTimeZone()), "</p>\n<h1>",
      EscapeMarkup(ReportTitle(report)), "</h1>\n");
  if (report.sweep.has_value()) {
    absl::StrAppend(&out, SweepVerdict(*report.sweep), SweepKeyFigures(*report.sweep));
  } else if (report.run.has_value()) {
    absl::StrAppend(&out, VerdictHtml(*report.run), KeyFiguresHtml(*report.run));
  }
  return absl::StrCat(out, "</header>\n", Setup(report));
}

}  // namespace flashbias::client
