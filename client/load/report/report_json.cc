#include "client/load/report/report_json.h"

#include <cmath>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "client/load/report/run_figures.h"
#include "nlohmann/json.hpp"

namespace flashbias::client {
namespace {

using Json = nlohmann::ordered_json;

// JSON has no infinity: a figure that is not finite becomes null.
Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }
Json Number(std::optional<double> value) {
  return value.has_value() ? Number(*value) : Json(nullptr);
}
Json Seconds(absl::Duration duration) { return Number(absl::ToDoubleSeconds(duration)); }

// That was asked for.
Json Rate(const RunReport& run) { return run.rate > 0 ? Number(run.rate) : Json(nullptr); }

// All null when nothing was recorded, which differs from a latency of zero.
Json Latency(const LatencyHistogram& histogram) {
  const bool any = histogram.count() > 0;
  const auto seconds = [any](absl::Duration duration) {
    return any ? Seconds(duration) : Json(nullptr);
  };
  Json json = {{"count", histogram.count()},
               {"mean", seconds(histogram.Mean())},
               {"standard_deviation", seconds(histogram.StandardDeviation())},
               {"min", seconds(histogram.min())}};
  for (const NamedPercentile& percentile : ReportedPercentiles()) {
    json[percentile.name] = seconds(histogram.Percentile(percentile.percent));
  }
  json["max"] = seconds(histogram.max());
  return json;
}

Json Server(const ServerInfo& server) {
  return {{"version", server.version}, {"backend", server.backend}, {"devices", server.devices}};
}

Json Stages(const LoadResult& result) {
  const StageMeans means = StageMeansOf(result);
  return {{"receive", Number(means.receive)}, {"queue", Number(means.queue)},
          {"compute", Number(means.compute)}, {"upload", Number(means.upload)},
          {"kernel", Number(means.kernel)},   {"download", Number(means.download)},
          {"send", Number(means.send)},       {"outside", Number(means.outside)}};
}

Json Verification(const VerifyReport& verify) {
  const auto number = [](bool compared, double value) {
    return compared ? Number(value) : Json(nullptr);
  };
  return {{"answers", verify.answers},
          {"rows", verify.rows},
          {"wrong", verify.wrong},
          {"max_o_error", number(verify.compared_o(), verify.max_o_error)},
          {"max_lse_error", number(verify.compared_lse(), verify.max_lse_error)},
          {"limit", number(verify.compared_o(), verify.limit)},
          {"max_gradient_error", number(verify.compared_gradients(), verify.max_gradient_error)},
          {"gradient_limit", number(verify.compared_gradients(), verify.gradient_limit)}};
}

Json JsonOfVerdict(const Verdict& verdict) {
  return {{"valid", verdict.valid()},
          {"generator_kept_up", verdict.generator_kept_up},
          {"server_kept_up", verdict.server_kept_up},
          {"steady", verdict.steady},
          {"reasons", verdict.reasons}};
}

Json Group(const std::string& name, const GroupResult& group) {
  return {{"name", name},
          {"requests_succeeded", group.succeeded},
          {"requests_failed", group.failed},
          {"latency_seconds", Latency(group.latency)}};
}

Json Intervals(const std::vector<Interval>& intervals) {
  Json json = Json::array();
  for (const Interval& interval : intervals) {
    const auto seconds = [&](absl::Duration duration) {
      return interval.succeeded > 0 ? Seconds(duration) : Json(nullptr);
    };
    json.push_back({{"start_seconds", Seconds(interval.start)},
                    {"length_seconds", Seconds(interval.length)},
                    {"offered", interval.offered},
                    {"succeeded", interval.succeeded},
                    {"failed", interval.failed},
                    {"bytes", interval.bytes},
                    {"p50_seconds", seconds(interval.p50)},
                    {"p99_seconds", seconds(interval.p99)},
                    {"max_seconds", seconds(interval.max)}});
  }
  return json;
}

// What one load came to, added to `json`.
void AddRun(const LoadReport& report, const RunReport& run, Json* json) {
  const LoadResult& result = run.result;
  const Rates rates = RatesOf(result);
  Json& out = *json;
  out["loop"] = Name(run.loop);
  out["rate"] = Rate(run);
  out["concurrency"] = run.concurrency;
  out["verdict"] = JsonOfVerdict(run.verdict);
  out["duration_seconds"] = Seconds(result.elapsed);
  out["offering_seconds"] = Seconds(result.offering);
  out["requests_offered"] = result.offered;
  out["requests_succeeded"] = result.succeeded;
  out["requests_failed"] = result.failed;
  out["requests_overflowed"] = result.overflowed;
  out["requests_per_second"] = Number(rates.good);
  out["offered_per_second"] = Number(rates.offered);
  out["achieved_per_second"] = Number(rates.achieved);
  out["tokens_per_second"] = Number(TokensPerSecond(result));
  out["bytes_per_second"] = Number(BytesPerSecond(result));
  out["latency_seconds"] = Latency(result.latency);
  out["service_seconds"] = Latency(result.service);
  out["lag_seconds"] = Latency(result.lag);
  out["statuses"] = Json::object();
  for (const auto& [code, status] : result.statuses) {
    out["statuses"][absl::StatusCodeToString(code)] = {
        {"count", status.count},
        {"first", status.first_message},
        {"latency_seconds", Latency(status.latency)}};
  }
  out["entries"] = Json::array();
  for (size_t n = 0; n < result.entries.size(); ++n) {
    out["entries"].push_back(Group(EntryName(report, n), result.entries[n]));
  }
  out["targets"] = Json::array();
  for (size_t n = 0; n < result.targets.size(); ++n) {
    out["targets"].push_back(Group(TargetName(report, n), result.targets[n]));
  }
  out["intervals"] = Intervals(result.intervals);
  out["server_stage_seconds"] = Stages(result);
  out["batch_requests"] = Number(MeanBatch(result.stages));
  out["tiles"] = {{"computed", result.stages.tiles_computed},
                  {"skipped", result.stages.tiles_skipped},
                  {"skipped_share", Number(SkippedShare(result.stages))}};
  out["verify"] = run.verify.has_value() ? Verification(*run.verify) : Json(nullptr);
  out["cpu"] = {{"client_seconds", Number(run.client_cpu_seconds)},
                {"server_seconds", Number(run.server_cpu_seconds)},
                {"bytes", run.cpu_bytes},
                {"client_ns_per_byte", Number(ClientCpuPerByte(run))},
                {"server_ns_per_byte", Number(ServerCpuPerByte(run))}};
  out["server_metrics_growth"] = Json::object();
  for (const auto& [name, growth] : run.server_growth) {
    out["server_metrics_growth"][name] = Number(growth);
  }
}

Json Sweep(const LoadReport& report, const SweepReport& sweep) {
  Json json = {{"slo_p99_seconds", Seconds(sweep.slo)},
               {"best_rate", Number(sweep.best_rate)},
               {"bound_rate", Number(sweep.bound_rate)},
               {"bounded_by_generator", BoundedByGenerator(sweep)},
               {"steps", Json::array()},
               {"overload", nullptr}};
  for (size_t n = 0; n < sweep.steps.size(); ++n) {
    Json step = {{"met", n < sweep.met.size() && sweep.met[n]}};
    AddRun(report, sweep.steps[n], &step);
    json["steps"].push_back(std::move(step));
  }
  if (sweep.overload.has_value()) {
    json["overload"] = Json::object();
    AddRun(report, *sweep.overload, &json["overload"]);
  }
  return json;
}

Json Config(const LoadReport& report) {
  Json json = {{"command", report.command},
               {"targets", report.targets},
               {"transport", report.transport},
               {"connections", report.connections},
               {"arrivals", report.arrivals.empty() ? Json(nullptr) : Json(report.arrivals)},
               {"rate", nullptr},
               {"concurrency", nullptr},
               {"warmup_seconds", Seconds(report.warmup)},
               {"warmup_requests",
                report.warmup_requests > 0 ? Json(report.warmup_requests) : Json(nullptr)},
               {"client_cores", report.client_cores},
               {"entries", Json::array()}};
  if (report.run.has_value()) {
    json["rate"] = Rate(*report.run);
    json["concurrency"] = report.run->concurrency;
  }
  for (const EntryReport& entry : report.entries) {
    json["entries"].push_back({{"name", entry.name},
                               {"share", Number(entry.share)},
                               {"request_bytes", entry.request_bytes},
                               {"response_bytes", entry.response_bytes}});
  }
  return json;
}

}  // namespace

std::string FormatJson(const LoadReport& report) {
  Json json = {
      {"version", report.version},
      {"started", absl::FormatTime(absl::RFC3339_sec, report.started, absl::UTCTimeZone())},
      {"seed", report.seed},
      {"config", Config(report)},
      {"servers", Json::array()}};
  for (const ServerInfo& server : report.servers) json["servers"].push_back(Server(server));
  if (report.run.has_value()) AddRun(report, *report.run, &json);
  if (report.sweep.has_value()) json["sweep"] = Sweep(report, *report.sweep);
  // A server's message need not be UTF-8; it must not throw.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace flashbias::client
