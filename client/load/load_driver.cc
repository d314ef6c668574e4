#include "client/load/load_driver.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/load/engine/process_cpu.h"
#include "client/load/engine/server_metrics.h"

namespace flashbias::client {
namespace {

constexpr absl::Duration kScrapeTimeout = absl::Seconds(10);
constexpr char kServerCpu[] = "process_cpu_seconds_total";

// Of all addresses, added up: counters of servers that share a load.
absl::StatusOr<MetricSamples> ScrapeAll(const std::vector<std::string>& addresses) {
  MetricSamples sum;
  for (const std::string& address : addresses) {
    absl::StatusOr<MetricSamples> samples = ScrapeMetrics(address, kScrapeTimeout);
    if (!samples.ok()) {
      return absl::Status(samples.status().code(),
                          absl::StrCat("--metrics: ", samples.status().message()));
    }
    for (const auto& [name, value] : *samples) sum[name] += value;
  }
  return sum;
}

// When the requests of a trace are sent; from its start again when it has ended.
absl::StatusOr<std::vector<absl::Duration>> TraceArrivals(const std::vector<TraceRow>& trace,
                                                          const LoadShape& shape) {
  std::vector<absl::Duration> arrivals;
  const absl::Duration end = shape.warmup + shape.duration;
  // A trace ends where its next request would be expected.
  const absl::Duration length =
      trace.back().arrival +
      trace.back().arrival / static_cast<int64_t>(std::max<size_t>(1, trace.size() - 1));
  const double rounds = std::floor(absl::FDivDuration(end * shape.trace_speed, length));
  if (shape.duration < absl::InfiniteDuration() && length > absl::ZeroDuration() &&
      rounds * static_cast<double>(trace.size()) > static_cast<double>(kMostArrivals)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--trace, replayed for ", absl::FormatDuration(end), " with --trace_speed ",
                     shape.trace_speed, ", makes more than ", kMostArrivals,
                     " requests; accepted: up to so many"));
  }
  for (int64_t round = 0;; ++round) {
    for (const TraceRow& row : trace) {
      const absl::Duration at = (round * length + row.arrival) / shape.trace_speed;
      if (at >= end) return arrivals;
      arrivals.push_back(at);
    }
    // Without an end it is replayed once; without times it would never end.
    if (shape.duration == absl::InfiniteDuration() || length <= absl::ZeroDuration()) {
      return arrivals;
    }
  }
}

absl::StatusOr<std::vector<absl::Duration>> RateArrivals(const LoadShape& shape) {
  ArrivalOptions options{.kind = shape.arrivals,
                         .rate = shape.rate,
                         .duration = shape.warmup + shape.duration,
                         .seed = shape.seed};
  if (shape.duration < absl::InfiniteDuration()) return DrawArrivals(options);
  // However long the requests after the warm-up take. Those in the warm-up are the same in a
  // schedule of any length.
  options.max_requests = shape.requests;
  if (shape.warmup > absl::ZeroDuration()) {
    ArrivalOptions before = options;
    before.duration = shape.warmup;
    before.max_requests = 0;
    const absl::StatusOr<std::vector<absl::Duration>> warmup = DrawArrivals(before);
    if (!warmup.ok()) return warmup.status();
    options.max_requests += static_cast<int64_t>(warmup->size());
  }
  return DrawArrivals(options);
}

// Of an open loop.
absl::StatusOr<std::vector<absl::Duration>> Schedule(const LoadShape& shape,
                                                     const RequestMix& mix) {
  absl::StatusOr<std::vector<absl::Duration>> arrivals =
      shape.trace_times ? TraceArrivals(mix.options().trace, shape) : RateArrivals(shape);
  if (arrivals.ok() && shape.requests > 0) {
    const auto measured = std::lower_bound(arrivals->begin(), arrivals->end(), shape.warmup);
    const auto count = std::min<int64_t>(shape.requests, arrivals->end() - measured);
    arrivals->erase(measured + count, arrivals->end());
  }
  return arrivals;
}

}  // namespace

LoadDriver::LoadDriver(LoadCaller* caller, const RequestMix* mix, Verifier* verifier,
                       Options options, const std::atomic<bool>* stop)
    : caller_(caller), mix_(mix), verifier_(verifier), options_(std::move(options)), stop_(stop) {}

LoadResult LoadDriver::RunLoop(const LoadShape& shape,
                               const std::vector<absl::Duration>& arrivals) const {
  if (shape.loop == LoopKind::kClosed) {
    return RunClosedLoop(*caller_,
                         {.concurrency = shape.concurrency,
                          .warmup = shape.warmup,
                          .warmup_requests = shape.warmup_requests,
                          .duration = shape.duration,
                          .requests = shape.requests},
                         *stop_, options_.observer);
  }
  return RunOpenLoop(*caller_,
                     {.arrivals = arrivals,
                      .warmup = shape.warmup,
                      .max_outstanding = shape.max_outstanding,
                      .send_threads = shape.send_threads,
                      .spin = shape.spin},
                     *stop_, options_.observer);
}

absl::StatusOr<RunReport> LoadDriver::Run(const LoadShape& shape) {
  const bool open = shape.loop == LoopKind::kOpen;
  RunReport report{.loop = shape.loop,
                   .rate = open && !shape.trace_times ? shape.rate : 0,
                   .concurrency = open ? shape.max_outstanding : shape.concurrency};
  // Before the CPU time is looked at: drawing it is no work on requests.
  std::vector<absl::Duration> arrivals;
  if (open) {
    absl::StatusOr<std::vector<absl::Duration>> schedule = Schedule(shape, *mix_);
    if (!schedule.ok()) return schedule.status();
    arrivals = *std::move(schedule);
  }
  const absl::StatusOr<MetricSamples> before = ScrapeAll(options_.metrics);
  if (!before.ok()) return before.status();
  const absl::Duration cpu_before = ProcessCpuTime();

  report.result = RunLoop(shape, arrivals);

  report.client_cpu_seconds = absl::ToDoubleSeconds(ProcessCpuTime() - cpu_before);
  const absl::StatusOr<MetricSamples> after = ScrapeAll(options_.metrics);
  if (!after.ok()) return after.status();
  report.server_growth = CounterGrowth(*before, *after);
  if (const auto cpu = report.server_growth.find(kServerCpu); cpu != report.server_growth.end()) {
    report.server_cpu_seconds = cpu->second;
  }
  report.cpu_bytes = report.result.bytes_with_warmup;
  report.verdict = open ? JudgeOpenLoop(report.result, options_.limits)
                        : JudgeClosedLoop(report.result, options_.limits);
  if (verifier_ != nullptr) report.verify = verifier_->Verify(report.result.samples);
  report.result.samples.clear();
  return report;
}

absl::StatusOr<double> LoadDriver::FirstRate(const LoadShape& shape) {
  LoadShape alone = shape;
  alone.loop = LoopKind::kClosed;
  alone.concurrency = 1;
  alone.warmup_requests = 0;
  alone.warmup = absl::ZeroDuration();
  alone.duration = absl::Seconds(1);
  alone.requests = 0;
  Narrate("one caller for a second, to find the first rate");
  const absl::StatusOr<RunReport> run = Run(alone);
  if (!run.ok()) return run.status();
  const Rates rates = RatesOf(run->result);
  if (!(rates.good > 0)) {
    return absl::UnavailableError("no request succeeded, so there is no rate to begin with");
  }
  return rates.good / 2;
}

absl::StatusOr<RunReport> LoadDriver::RunStep(const LoadShape& shape) {
  constexpr int kTries = 3;
  for (int n = 1;; ++n) {
    absl::StatusOr<RunReport> run = Run(shape);
    if (!run.ok() || run->verdict.generator_kept_up || n == kTries || stop_->load()) return run;
    // Another try would hide it.
    if (run->verify.has_value() && run->verify->wrong > 0) return run;
    Narrate(absl::StrCat("  again: ", run->verdict.reasons.front()));
  }
}

absl::StatusOr<SweepReport> LoadDriver::Sweep(const LoadShape& shape, const SweepOptions& options) {
  SweepReport report{.slo = options.slo};
  RateSearch::Options search_options = options.search;
  if (search_options.first_rate <= 0) {
    const absl::StatusOr<double> first = FirstRate(shape);
    if (!first.ok()) return first.status();
    search_options.first_rate = *first;
  }
  LoadShape step = shape;
  step.loop = LoopKind::kOpen;
  RateSearch search(search_options);
  for (std::optional<double> rate = search.Next(); rate.has_value() && !stop_->load();
       rate = search.Next()) {
    step.rate = *rate;
    Narrate(absl::StrFormat("step %d: %.5g requests/s", report.steps.size() + 1, *rate));
    absl::StatusOr<RunReport> run = RunStep(step);
    if (!run.ok()) return run.status();
    if (stop_->load()) break;
    const bool met = MeetsObjective(*run, options.slo);
    Narrate(absl::StrFormat("  p99 %s, %.5g good requests/s: %s",
                            absl::FormatDuration(absl::Trunc(run->result.latency.Percentile(99),
                                                             absl::Microseconds(1))),
                            RatesOf(run->result).good, met ? "met" : "not met"));
    report.steps.push_back(*std::move(run));
    report.met.push_back(met);
    search.Report(met);
    step.seed += 1;
  }
  report.best_rate = search.best();
  report.bound_rate = search.bound();
  if (report.best_rate.has_value() && !stop_->load()) {
    step.rate = 2 * *report.best_rate;
    Narrate(absl::StrFormat("twice the best rate: %.5g requests/s", step.rate));
    absl::StatusOr<RunReport> run = Run(step);
    if (!run.ok()) return run.status();
    report.overload = *std::move(run);
  }
  return report;
}

void LoadDriver::Narrate(const std::string& line) const {
  if (options_.narrate != nullptr) options_.narrate(line);
}

}  // namespace flashbias::client
