#include "tests/client/load/simulated_report.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <queue>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace flashbias::client {
namespace {

constexpr int64_t kBytes = 13'107'200;  // of a request of 50 heads x 32 x 1024 in fp16, and back
constexpr int64_t kTokens = 1024;

struct Answered {
  absl::Duration intended;
  absl::Duration lag;
  absl::Duration wait;  // in the server's queue
  absl::Duration latency;
  bool failed;
};

absl::Duration Random(std::mt19937_64* random, double mean_seconds) {
  return absl::Seconds(std::exponential_distribution<double>(1 / mean_seconds)(*random));
}

// Nearest-rank percentile of ascending values.
absl::Duration At(const std::vector<absl::Duration>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::max<size_t>(rank, 1) - 1];
}

LoadResult ResultOf(const std::vector<Answered>& all, absl::Duration duration,
                    absl::Duration interval_length, absl::Duration work) {
  LoadResult result;
  result.offering = duration;
  result.elapsed = duration;
  result.offered = static_cast<int64_t>(all.size());
  result.entries.resize(2);
  result.targets.resize(2);
  const auto intervals =
      static_cast<size_t>(std::ceil(absl::FDivDuration(duration, interval_length) - 1e-9));
  std::vector<std::vector<absl::Duration>> latencies(intervals);
  for (size_t n = 0; n < intervals; ++n) {
    const absl::Duration start = interval_length * static_cast<int64_t>(n);
    result.intervals.push_back(
        {.start = start, .length = std::min(interval_length, duration - start)});
  }
  for (size_t n = 0; n < all.size(); ++n) {
    const Answered& answered = all[n];
    const auto at = std::min(
        intervals - 1, static_cast<size_t>(absl::FDivDuration(answered.intended, interval_length)));
    Interval& interval = result.intervals[at];
    GroupResult& entry = result.entries[n % 4 == 0 ? 1 : 0];
    GroupResult& target = result.targets[n % 2];
    result.elapsed = std::max(result.elapsed, answered.intended + answered.latency);
    if (answered.intended + answered.latency <= duration + 10 * work) ++result.answered_in_time;
    result.lag.Record(answered.lag);
    ++interval.offered;
    StatusResult& status = result.statuses[answered.failed ? absl::StatusCode::kDeadlineExceeded
                                                           : absl::StatusCode::kOk];
    ++status.count;
    status.latency.Record(answered.latency);
    if (answered.failed) {
      if (status.first_message.empty()) status.first_message = "Deadline Exceeded";
      ++result.failed;
      ++interval.failed;
      ++entry.failed;
      ++target.failed;
      continue;
    }
    ++result.succeeded;
    ++interval.succeeded;
    ++entry.succeeded;
    ++target.succeeded;
    interval.bytes += kBytes;
    result.bytes += kBytes;
    result.tokens += kTokens;
    result.latency.Record(answered.latency);
    result.service.Record(answered.latency - answered.lag);
    entry.latency.Record(answered.latency);
    target.latency.Record(answered.latency);
    latencies[at].push_back(answered.latency);
    StageTotals& stages = result.stages;
    ++stages.calls;
    stages.batch_requests += 1 + static_cast<int64_t>(absl::FDivDuration(answered.wait, work)) % 6;
    stages.receive += absl::Microseconds(310);
    stages.queue += answered.wait;
    stages.compute += work;
    stages.upload += work * 0.22;
    stages.kernel += work * 0.55;
    stages.download += work * 0.15;
    stages.send += absl::Microseconds(420);
    stages.tiles_computed += 4'200;
    stages.tiles_skipped += 2'600;
  }
  for (size_t n = 0; n < intervals; ++n) {
    std::vector<absl::Duration>& sorted = latencies[n];
    if (sorted.empty()) continue;
    std::sort(sorted.begin(), sorted.end());
    result.intervals[n].p50 = At(sorted, 0.5);
    result.intervals[n].p99 = At(sorted, 0.99);
    result.intervals[n].max = sorted.back();
  }
  result.bytes_with_warmup = result.bytes + result.bytes / 10;
  return result;
}

RunReport ReportOf(LoadResult result) {
  RunReport run;
  run.cpu_bytes = result.bytes_with_warmup;
  run.client_cpu_seconds = static_cast<double>(run.cpu_bytes) * 0.31e-9;
  run.server_cpu_seconds = static_cast<double>(run.cpu_bytes) * 0.52e-9;
  run.server_growth = {
      {"flashbias_requests_total{code=\"OK\",method=\"Attend\",transport=\"tcp\"}",
       static_cast<double>(result.succeeded)},
      {"flashbias_tiles_skipped_total", static_cast<double>(result.stages.tiles_skipped)},
      {"flashbias_copied_bytes_total{direction=\"to_device\"}",
       static_cast<double>(result.bytes) * 0.75},
  };
  run.verdict.steady = true;
  run.result = std::move(result);
  return run;
}

}  // namespace

RunReport SimulateOpenLoop(const SimulatedRun& run) {
  std::mt19937_64 random(run.seed);
  std::vector<Answered> all;
  absl::Duration free_at;  // the server
  const absl::Duration stall_begin = run.duration / 2;
  bool stalled = run.stall == absl::ZeroDuration();
  for (absl::Duration intended = Random(&random, 1 / run.rate); intended < run.duration;
       intended += Random(&random, 1 / run.rate)) {
    const absl::Duration lag = Random(&random, 40e-6);
    const absl::Duration outside = absl::Microseconds(600) + Random(&random, 250e-6);
    const absl::Duration came = intended + lag;
    if (!stalled && came > stall_begin) {
      stalled = true;
      free_at = std::max(free_at, stall_begin + run.stall);
    }
    const absl::Duration wait = std::max(absl::ZeroDuration(), free_at - came);
    const absl::Duration latency = lag + wait + run.work + absl::Microseconds(730) + outside;
    if (wait > run.timeout) {
      all.push_back({intended, lag, wait, lag + run.timeout, true});
      continue;  // dropped from the queue, so it costs the server nothing
    }
    free_at = came + wait + run.work;
    all.push_back({intended, lag, wait, latency, false});
  }
  RunReport report = ReportOf(ResultOf(all, run.duration, run.interval, run.work));
  report.loop = LoopKind::kOpen;
  report.rate = run.rate;
  report.concurrency = 1024;
  return report;
}

RunReport SimulateClosedLoop(const SimulatedCallers& callers) {
  std::mt19937_64 random(callers.seed);
  std::priority_queue<absl::Duration, std::vector<absl::Duration>, std::greater<>> ready;
  for (int n = 0; n < callers.callers; ++n) ready.push(absl::Microseconds(10 * n));
  std::vector<Answered> all;
  absl::Duration free_at;
  while (ready.top() < callers.duration) {
    const absl::Duration intended = ready.top();
    ready.pop();
    const absl::Duration lag = Random(&random, 5e-6);
    const absl::Duration came = intended + lag;
    const absl::Duration wait = std::max(absl::ZeroDuration(), free_at - came);
    free_at = came + wait + callers.work;
    const absl::Duration outside = absl::Microseconds(600) + Random(&random, 250e-6);
    const absl::Duration latency = lag + wait + callers.work + absl::Microseconds(730) + outside;
    all.push_back({intended, lag, wait, latency, false});
    ready.push(intended + latency);
  }
  RunReport report = ReportOf(ResultOf(all, callers.duration, absl::Seconds(1), callers.work));
  report.loop = LoopKind::kClosed;
  report.concurrency = callers.callers;
  report.verify = VerifyReport{.answers = 120,
                               .rows = 480,
                               .lse_rows = 480,
                               .max_o_error = 1.7e-4,
                               .max_lse_error = 2.4e-6,
                               .limit = 3e-4};
  return report;
}

LoadReport SimulatedSetup() {
  LoadReport report;
  report.version = "0.1.0";
  report.command =
      "flashbias-load --targets=10.0.0.5:8471,10.0.0.6:8471 --mix=gpt2.json --rate=180 "
      "--duration=30s --html=report.html";
  report.started = absl::FromUnixSeconds(1'790'000'000);
  report.seed = 7;
  report.targets = {"10.0.0.5:8471", "10.0.0.6:8471"};
  report.servers = {{.version = "0.1.0", .backend = "cuda", .devices = {"NVIDIA H200, sm_90"}},
                    {.version = "0.1.0", .backend = "cuda", .devices = {"NVIDIA H200, sm_90"}}};
  report.transport = "inline";
  report.connections = 8;
  report.arrivals = "poisson";
  report.warmup = absl::Seconds(2);
  report.client_cores = 16;
  report.entries = {{.name = "prefill: 1024 x 1024, 50 heads x 32, float16, causal, alibi seed",
                     .share = 0.75,
                     .request_bytes = 9'830'400,
                     .response_bytes = 3'276'800},
                    {.name = "decode: 1 x 64 to 8192, 50 heads x 32, float16, causal, alibi seed",
                     .share = 0.25,
                     .request_bytes = 52'432'000,
                     .response_bytes = 3'200}};
  return report;
}

LoadReport SimulatedOpenLoopReport() {
  LoadReport report = SimulatedSetup();
  report.run = SimulateOpenLoop({.rate = 180,
                                 .duration = absl::Seconds(60),
                                 .timeout = absl::Milliseconds(900),
                                 .stall = absl::Milliseconds(1500)});
  report.run->verdict.steady = false;
  report.run->verdict.reasons = {
      "in the second third of the run the median latency is 31 % above the mean of the three "
      "(accepted: 10 %)"};
  return report;
}

LoadReport SimulatedClosedLoopReport() {
  LoadReport report = SimulatedSetup();
  report.command =
      "flashbias-load --targets=10.0.0.5:8471,10.0.0.6:8471 --mix=gpt2.json "
      "--concurrency=8 --duration=30s --verify --html=report.html";
  report.arrivals.clear();
  report.run = SimulateClosedLoop({});
  return report;
}

LoadReport SimulatedSweepReport() {
  LoadReport report = SimulatedSetup();
  report.command =
      "flashbias-load --targets=10.0.0.5:8471,10.0.0.6:8471 --mix=gpt2.json --sweep "
      "--slo_p99=40ms --duration=20s --html=report.html";
  SweepReport sweep{.slo = absl::Milliseconds(40)};
  uint64_t seed = 1;
  for (const double rate : {50.0, 75.0, 112.5, 168.75, 253.125, 210.9375, 232.03, 221.48, 216.21}) {
    SimulatedRun simulated{.rate = rate,
                           .duration = absl::Seconds(20),
                           .timeout = absl::Milliseconds(900),
                           .seed = ++seed};
    sweep.steps.push_back(SimulateOpenLoop(simulated));
    RunReport& step = sweep.steps.back();
    const bool met = step.result.failed == 0 && step.result.latency.Percentile(99) <= sweep.slo;
    sweep.met.push_back(met);
    if (met) {
      sweep.best_rate = std::max(sweep.best_rate.value_or(0), rate);
    } else {
      sweep.bound_rate = std::min(sweep.bound_rate.value_or(1e9), rate);
    }
  }
  SimulatedRun overload{.rate = 2 * sweep.best_rate.value_or(50),
                        .duration = absl::Seconds(20),
                        .timeout = absl::Milliseconds(900),
                        .seed = 99};
  sweep.overload = SimulateOpenLoop(overload);
  sweep.overload->verdict.server_kept_up = false;
  sweep.overload->verdict.reasons = {
      "the server did not keep up, it answered fewer requests than were offered"};
  report.sweep = std::move(sweep);
  return report;
}

}  // namespace flashbias::client
