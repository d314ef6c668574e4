#include "client/load/report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

namespace flashbias::client {
namespace {

// Figures that both forms show.
struct Rates {
  double requests = 0;  // per second, succeeded
  double tokens = 0;    // queries per second
  double bytes = 0;     // tensors in and out, per second
};

Rates RatesOf(const LoadReport& report) {
  const double seconds = absl::ToDoubleSeconds(report.result.elapsed);
  if (!(seconds > 0)) return {};
  const double requests = static_cast<double>(report.result.succeeded) / seconds;
  return {.requests = requests,
          .tokens = requests * static_cast<double>(report.request.total_q),
          .bytes = requests * static_cast<double>(report.request.request_bytes +
                                                  report.request.response_bytes)};
}

double SkippedShare(const StageTotals& stages) {
  const int64_t tiles = stages.tiles_computed + stages.tiles_skipped;
  return tiles == 0 ? 0 : static_cast<double>(stages.tiles_skipped) / static_cast<double>(tiles);
}

double MeanSeconds(absl::Duration sum, int64_t count) {
  return count == 0 ? 0 : absl::ToDoubleSeconds(sum) / static_cast<double>(count);
}

double MeanBatch(const LoadResult& result) {
  return result.stages.calls == 0 ? 0
                                  : static_cast<double>(result.stages.batch_requests) /
                                        static_cast<double>(result.stages.calls);
}

std::string Milliseconds(double seconds) { return absl::StrFormat("%.3f ms", seconds * 1e3); }
std::string Milliseconds(absl::Duration d) { return Milliseconds(absl::ToDoubleSeconds(d)); }

// JSON has no infinity: a figure that is not finite becomes null.
nlohmann::json Number(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr);
}

// What the requests that are counted are.
std::string Describe(LoadDirection direction) {
  return direction == LoadDirection::kBoth ? "forward and backward call" : Name(direction);
}

std::string CodeName(absl::StatusCode code) { return absl::StatusCodeToString(code); }

}  // namespace

std::string FormatTable(const LoadReport& report) {
  const WorkloadOptions& w = report.workload;
  const LoadResult& result = report.result;
  const Rates rates = RatesOf(report);
  const int64_t n = result.succeeded;
  std::string out = absl::StrFormat(
      "server        %s, %s %s (%s)\n"
      "request       %s: %d queries x %d keys, %d heads (%d of k, v) x %d, %s, %s, alibi %s\n"
      "load          %d in flight over %d connections, %s\n"
      "requests      %d succeeded, %d failed\n",
      report.target, report.server.backend, report.server.version,
      absl::StrJoin(report.server.devices, "; "), Describe(w.direction), report.request.total_q,
      report.request.total_kv, report.request.num_q_heads, report.request.num_kv_heads,
      report.request.head_dim, Name(w.dtype), w.causal ? "causal" : "full", w.alibi,
      report.concurrency, report.connections,
      absl::FormatDuration(absl::Trunc(result.elapsed, absl::Milliseconds(1))), n, result.failed);
  for (const auto& [code, errors] : result.errors) {
    absl::StrAppendFormat(&out, "              %s: %d, first: %s\n", CodeName(code), errors.count,
                          errors.first_message);
  }
  absl::StrAppendFormat(&out,
                        "throughput    %.2f requests/s, %.0f tokens/s, %.4f GB/s in and out\n",
                        rates.requests, rates.tokens, rates.bytes / 1e9);
  absl::StrAppendFormat(
      &out, "latency       mean %s, p50 %s, p90 %s, p99 %s, p99.9 %s, max %s\n",
      Milliseconds(result.latency.Mean()), Milliseconds(result.latency.Percentile(50)),
      Milliseconds(result.latency.Percentile(90)), Milliseconds(result.latency.Percentile(99)),
      Milliseconds(result.latency.Percentile(99.9)), Milliseconds(result.latency.max()));
  absl::StrAppendFormat(&out, "server stages receive %s, queue %s, compute %s, send %s (means)\n",
                        Milliseconds(MeanSeconds(result.stages.receive, n)),
                        Milliseconds(MeanSeconds(result.stages.queue, n)),
                        Milliseconds(MeanSeconds(result.stages.compute, n)),
                        Milliseconds(MeanSeconds(result.stages.send, n)));
  absl::StrAppendFormat(&out, "of compute    upload %s, kernel %s, download %s (means)\n",
                        Milliseconds(MeanSeconds(result.stages.upload, n)),
                        Milliseconds(MeanSeconds(result.stages.kernel, n)),
                        Milliseconds(MeanSeconds(result.stages.download, n)));
  absl::StrAppendFormat(&out, "batches       %.2f requests on average\n", MeanBatch(result));
  absl::StrAppendFormat(&out, "tiles         %.1f %% skipped (%d computed, %d skipped)\n",
                        100 * SkippedShare(result.stages), result.stages.tiles_computed,
                        result.stages.tiles_skipped);
  if (report.verify.has_value()) {
    const VerifyReport& v = *report.verify;
    absl::StrAppendFormat(&out, "verified      %d answers (%d rows), %d wrong", v.answers, v.rows,
                          v.wrong);
    if (w.direction != LoadDirection::kBackward) {
      absl::StrAppendFormat(
          &out, "; largest relative error of o %.2e, of lse %s; limit %.0e", v.max_o_error,
          w.want_lse ? absl::StrFormat("%.2e", v.max_lse_error) : "not asked for", v.limit);
    }
    if (w.direction != LoadDirection::kForward) {
      absl::StrAppendFormat(&out, "; of dq, dk and dv %.2e, limit %.0e", v.max_gradient_error,
                            v.gradient_limit);
    }
    absl::StrAppend(&out, "\n");
  }
  return out;
}

std::string FormatJson(const LoadReport& report) {
  const WorkloadOptions& w = report.workload;
  const LoadResult& result = report.result;
  const Rates rates = RatesOf(report);
  const int64_t n = result.succeeded;
  nlohmann::ordered_json json;
  json["target"] = report.target;
  json["server"] = {{"version", report.server.version},
                    {"backend", report.server.backend},
                    {"devices", report.server.devices}};
  json["config"] = {{"direction", Name(w.direction)},
                    {"bias_gradient", w.bias_gradient},
                    {"heads", report.request.num_q_heads},
                    {"kv_heads", report.request.num_kv_heads},
                    {"head_dim", report.request.head_dim},
                    {"seq_len", report.request.total_kv},
                    {"q_len", report.request.total_q},
                    {"dtype", Name(w.dtype)},
                    {"alibi", w.alibi},
                    {"causal", w.causal},
                    {"eps", w.eps.has_value() ? nlohmann::json(*w.eps) : nlohmann::json(nullptr)},
                    {"want_lse", w.want_lse},
                    {"inputs", w.num_inputs},
                    {"seed", w.seed},
                    {"concurrency", report.concurrency},
                    {"connections", report.connections}};
  json["duration_seconds"] = absl::ToDoubleSeconds(result.elapsed);
  json["requests_succeeded"] = n;
  json["requests_failed"] = result.failed;
  json["errors"] = nlohmann::ordered_json::object();
  for (const auto& [code, errors] : result.errors) {
    json["errors"][CodeName(code)] = {{"count", errors.count}, {"first", errors.first_message}};
  }
  json["requests_per_second"] = rates.requests;
  json["tokens_per_second"] = rates.tokens;
  json["bytes_per_second"] = rates.bytes;
  json["request_bytes"] = report.request.request_bytes;
  json["response_bytes"] = report.request.response_bytes;
  json["latency_seconds"] = {{"mean", absl::ToDoubleSeconds(result.latency.Mean())},
                             {"p50", absl::ToDoubleSeconds(result.latency.Percentile(50))},
                             {"p90", absl::ToDoubleSeconds(result.latency.Percentile(90))},
                             {"p99", absl::ToDoubleSeconds(result.latency.Percentile(99))},
                             {"p99.9", absl::ToDoubleSeconds(result.latency.Percentile(99.9))},
                             {"max", absl::ToDoubleSeconds(result.latency.max())}};
  json["server_stage_seconds"] = {{"receive", Number(MeanSeconds(result.stages.receive, n))},
                                  {"queue", Number(MeanSeconds(result.stages.queue, n))},
                                  {"compute", Number(MeanSeconds(result.stages.compute, n))},
                                  {"upload", Number(MeanSeconds(result.stages.upload, n))},
                                  {"kernel", Number(MeanSeconds(result.stages.kernel, n))},
                                  {"download", Number(MeanSeconds(result.stages.download, n))},
                                  {"send", Number(MeanSeconds(result.stages.send, n))}};
  json["batch_requests"] = MeanBatch(result);
  json["tiles"] = {{"computed", result.stages.tiles_computed},
                   {"skipped", result.stages.tiles_skipped},
                   {"skipped_share", SkippedShare(result.stages)}};
  json["verify"] = nullptr;
  if (report.verify.has_value()) {
    const VerifyReport& v = *report.verify;
    json["verify"] = {{"answers", v.answers},
                      {"rows", v.rows},
                      {"wrong", v.wrong},
                      {"max_o_error", Number(v.max_o_error)},
                      {"max_lse_error", w.want_lse ? Number(v.max_lse_error) : nullptr},
                      {"limit", v.limit}};
    if (w.direction != LoadDirection::kForward) {
      json["verify"]["max_gradient_error"] = Number(v.max_gradient_error);
      json["verify"]["gradient_limit"] = v.gradient_limit;
    }
  }
  // A server's message need not be UTF-8; it must not throw.
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

absl::Status Judge(const LoadReport& report, bool allow_errors) {
  const LoadResult& result = report.result;
  if (report.verify.has_value() && report.verify->wrong > 0) {
    return absl::DataLossError(absl::StrCat(report.verify->wrong, " of ", report.verify->answers,
                                            " verified answers are wrong"));
  }
  if (result.succeeded == 0) return absl::UnavailableError("no request succeeded");
  if (report.verify.has_value() && report.verify->answers == 0) {
    return absl::FailedPreconditionError("no answer was verified: the share is too small");
  }
  if (result.failed > 0 && !allow_errors) {
    return absl::AbortedError(absl::StrCat(result.failed, " of ", result.failed + result.succeeded,
                                           " requests failed (--allow_errors accepts that)"));
  }
  return absl::OkStatus();
}

}  // namespace flashbias::client
