#include "client/load/report/run_figures.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace flashbias::client {
namespace {

constexpr NamedPercentile kPercentiles[] = {{"p50", 50},       {"p75", 75},        {"p90", 90},
                                            {"p95", 95},       {"p99", 99},        {"p99.9", 99.9},
                                            {"p99.99", 99.99}, {"p99.999", 99.999}};

double PerSecond(int64_t count, absl::Duration elapsed) {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

double PerByte(double cpu_seconds, int64_t bytes) {
  return cpu_seconds * 1e9 / static_cast<double>(bytes);
}

}  // namespace

absl::Span<const NamedPercentile> ReportedPercentiles() { return kPercentiles; }

StageMeans StageMeansOf(const LoadResult& result) {
  if (result.succeeded == 0) return {};
  const auto mean = [&](absl::Duration sum) {
    return absl::ToDoubleSeconds(sum) / static_cast<double>(result.succeeded);
  };
  const StageTotals& stages = result.stages;
  StageMeans means{.receive = mean(stages.receive),
                   .queue = mean(stages.queue),
                   .compute = mean(stages.compute),
                   .send = mean(stages.send),
                   .upload = mean(stages.upload),
                   .kernel = mean(stages.kernel),
                   .download = mean(stages.download)};
  means.rest_of_compute =
      std::max(0.0, means.compute - means.upload - means.kernel - means.download);
  means.outside = std::max(0.0, absl::ToDoubleSeconds(result.service.Mean()) - means.receive -
                                    means.queue - means.compute - means.send);
  return means;
}

double MeanBatch(const StageTotals& stages) {
  return stages.calls == 0
             ? 0
             : static_cast<double>(stages.batch_requests) / static_cast<double>(stages.calls);
}

double SkippedShare(const StageTotals& stages) {
  const int64_t tiles = stages.tiles_computed + stages.tiles_skipped;
  return tiles == 0 ? 0 : static_cast<double>(stages.tiles_skipped) / static_cast<double>(tiles);
}

double TokensPerSecond(const LoadResult& result) {
  return PerSecond(result.tokens, result.elapsed);
}
double BytesPerSecond(const LoadResult& result) { return PerSecond(result.bytes, result.elapsed); }

std::optional<double> ClientCpuPerByte(const RunReport& run) {
  if (run.cpu_bytes <= 0) return std::nullopt;
  return PerByte(run.client_cpu_seconds, run.cpu_bytes);
}

std::optional<double> ServerCpuPerByte(const RunReport& run) {
  if (run.cpu_bytes <= 0 || !run.server_cpu_seconds.has_value()) return std::nullopt;
  return PerByte(*run.server_cpu_seconds, run.cpu_bytes);
}

const RunReport* BestStep(const SweepReport& sweep) {
  if (sweep.steps.empty()) return nullptr;
  for (const RunReport& step : sweep.steps) {
    if (step.rate == sweep.best_rate) return &step;
  }
  return &sweep.steps.front();
}

bool BoundedByGenerator(const SweepReport& sweep) {
  return std::any_of(sweep.steps.begin(), sweep.steps.end(), [&](const RunReport& step) {
    return sweep.bound_rate == step.rate && !step.verdict.generator_kept_up;
  });
}

std::string StepOutcome(const SweepReport& sweep, size_t n) {
  const Verdict& verdict = sweep.steps[n].verdict;
  const char* const outcome = n < sweep.met.size() && sweep.met[n] ? "met" : "not met";
  if (!verdict.valid() && !verdict.reasons.empty()) {
    return absl::StrCat(outcome, ": ", verdict.reasons.front());
  }
  return absl::StrCat(outcome, verdict.steady ? "" : ", not steady");
}

absl::Span<const Interval> PlottedIntervals(const LoadResult& result) {
  absl::Span<const Interval> intervals = result.intervals;
  if (intervals.size() > 1 && intervals.back().length < intervals.front().length / 2) {
    intervals.remove_suffix(1);
  }
  return intervals;
}

std::string Name(LoopKind loop) { return loop == LoopKind::kOpen ? "open" : "closed"; }

std::string DescribeServer(const ServerInfo& server) {
  std::string out = absl::StrCat(server.backend, " ", server.version);
  if (!server.devices.empty())
    absl::StrAppend(&out, " (", absl::StrJoin(server.devices, "; "), ")");
  return out;
}

std::string DescribeWarmup(const LoadReport& report, const std::string& time) {
  if (report.warmup <= absl::ZeroDuration()) return "";
  if (report.warmup_requests == 0) return time;
  const std::string requests = absl::StrCat(report.warmup_requests, " requests");
  return report.warmup == absl::InfiniteDuration() ? requests
                                                   : absl::StrCat(time, " or ", requests);
}

std::string TargetName(const LoadReport& report, size_t target) {
  return target < report.targets.size() ? report.targets[target] : absl::StrCat("target ", target);
}

std::string EntryName(const LoadReport& report, size_t entry) {
  return entry < report.entries.size() ? report.entries[entry].name : absl::StrCat("entry ", entry);
}

}  // namespace flashbias::client
