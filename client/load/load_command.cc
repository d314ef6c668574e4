#include "client/load/load_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/types/optional.h"
#include "client/flags/connection_flags.h"
#include "client/flags/dtype_flag.h"
#include "client/load/requests/mix_file.h"

ABSL_FLAG(std::string, target, "localhost:8471",
          "server: host:port or unix:PATH; several, separated by commas, are called in turn");
ABSL_FLAG(
    std::string, transport, "inline",
    "how tensors travel: inline, in one message; stream, in chunks; shared_memory, over a unix "
    "socket only");
ABSL_FLAG(int, connections, 1, "TCP connections to each target, 1 to 256");
ABSL_FLAG(double, rate, 0,
          "open loop: requests a second that are offered whatever becomes of them; 0: closed loop, "
          "or the times of --trace. With --sweep the first rate; 0: half of what one caller gets");
ABSL_FLAG(std::string, arrivals, "poisson", "of an open loop: poisson or constant");
ABSL_FLAG(
    int, max_outstanding, 256,
    "open loop: requests in flight, 1 to 65536; those beyond are not sent and count as failed");
ABSL_FLAG(int, send_threads, 2, "open loop: threads that send, 1 to 64");
ABSL_FLAG(
    absl::Duration, spin, absl::ZeroDuration(),
    "open loop: the last part of a wait in which a sender watches the clock, for less lag; it "
    "takes a core a sender");
ABSL_FLAG(absl::optional<int>, concurrency, absl::nullopt,
          "closed loop (capacity): requests in flight, 1 to 1024; empty: 8");
ABSL_FLAG(bool, sweep, false,
          "find the highest rate whose p99 meets --slo: steps up, bisects, then drives twice that");
ABSL_FLAG(absl::Duration, slo, absl::ZeroDuration(), "objective of --sweep for the p99 latency");
ABSL_FLAG(double, sweep_step, 1.5,
          "factor between the rates of --sweep before it bisects, 1.01 to 10");
ABSL_FLAG(double, sweep_precision, 0.05,
          "--sweep ends when it knows the rate to this share, 0.001 to 1");
ABSL_FLAG(double, max_rate, 0, "no rate above this is driven by --sweep's search; 0: any");
ABSL_FLAG(absl::Duration, max_lag, absl::Milliseconds(1),
          "a run whose sends were later than this (p99) is invalid");
ABSL_FLAG(double, max_lag_share, 0.05,
          "a run whose sends were later (p99) than this share of the latency's p50 is invalid");
ABSL_FLAG(double, min_achieved, 0.98,
          "a run that was answered at less than this share of the offered rate is invalid, 0 to 1");
ABSL_FLAG(std::string, mix, "",
          "file of the requests' kinds, weights and lengths as JSON; what it leaves out is as the "
          "flags say");
ABSL_FLAG(std::string, trace, "",
          "file of recorded lengths as CSV: seq_len and, if recorded, q_len and arrival_seconds");
ABSL_FLAG(double, trace_speed, 1, "the times of --trace pass so many times faster");
ABSL_FLAG(int64_t, heads, 50, "heads of q");
ABSL_FLAG(int64_t, kv_heads, 0, "heads of k and v; 0: as many as --heads");
ABSL_FLAG(int64_t, head_dim, 32, "values per head, 1 to 128");
ABSL_FLAG(int64_t, seq_len, 1024, "keys");
ABSL_FLAG(int64_t, q_len, 0, "queries, at the end of the keys; 0: as many as keys");
ABSL_FLAG(std::string, dtype, "float16", "float16, bfloat16 or float32");
ABSL_FLAG(std::string, alibi, "seed", "slopes: standard (Press et al.), seed (2^(-8k/H)) or none");
ABSL_FLAG(bool, causal, true, "a query sees keys up to its own position; --nocausal: every key");
ABSL_FLAG(absl::optional<float>, eps, absl::nullopt,
          "largest share of softmax mass that skipping may drop; empty: the server's default");
ABSL_FLAG(bool, want_lse, false, "ask for the log-sum-exp");
ABSL_FLAG(std::string, direction, "forward",
          "what a request is: forward; backward, of forward calls that are made before; or both, a "
          "forward call and then the backward call of its answer");
ABSL_FLAG(bool, bias_gradient, false, "ask backward calls for the gradient of the slopes");
ABSL_FLAG(int, inputs, 4, "different inputs, sent in turn, 1 to 64");
ABSL_FLAG(uint64_t, seed, 1, "of arrivals, requests, inputs and of which answers are verified");
ABSL_FLAG(
    absl::optional<absl::Duration>, duration, absl::nullopt,
    "end after this, from the end of the warm-up; inf: only by --requests, or with the trace; "
    "empty: 10s, or inf when --requests is given");
ABSL_FLAG(int64_t, requests, 0, "end after this many, from the end of the warm-up; 0: any number");
ABSL_FLAG(absl::optional<absl::Duration>, warmup, absl::nullopt,
          "sent before, not measured; 0: none; empty: 1s, or inf when --warmup_requests is given");
ABSL_FLAG(int64_t, warmup_requests, 0,
          "closed loop: end the warm-up after this many; 0: only by --warmup");
ABSL_FLAG(absl::Duration, timeout, absl::Seconds(60), "of each call");
ABSL_FLAG(int64_t, max_message_bytes, (int64_t{1} << 31) - 1, "of a request or an answer");
ABSL_FLAG(double, verify, 0,
          "share of the answers, 0 to 1, of which rows are compared with a double-precision "
          "reference after the run; --verify alone: 0.05");
ABSL_FLAG(int, verify_rows, 16, "rows compared of each such answer, 1 to 4096");
ABSL_FLAG(
    std::string, metrics, "",
    "host:port of the server's /metrics, one for each target, separated by commas: its counters "
    "and CPU time are reported; empty: they are not");
ABSL_FLAG(bool, allow_errors, false, "failed requests do not make the exit code 1");
ABSL_FLAG(bool, progress, false, "a live line on stderr even when that is no terminal");
ABSL_FLAG(std::string, json, "", "file for the report as JSON; -: stdout, the table to stderr");
ABSL_FLAG(std::string, csv, "", "file for the intervals of a run, or the steps of a sweep, as CSV");
ABSL_FLAG(std::string, hdr, "", "file for the latencies in HdrHistogram's percentile format");
ABSL_FLAG(std::string, html, "", "file for the report as one HTML page with plots");

namespace flashbias::client {
namespace {

template <typename T>
absl::Status CheckRange(const char* flag, T value, T least, T most) {
  // Written so that NaN is refused.
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is ", value, "; accepted: ", least, " to ", most));
}

absl::Status CheckPositive(const char* flag, absl::Duration value) {
  if (value > absl::ZeroDuration()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is ", absl::FormatDuration(value), "; accepted: positive durations"));
}

absl::Status CheckNotNegative(const char* flag, absl::Duration value) {
  if (value >= absl::ZeroDuration()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is ", absl::FormatDuration(value), "; accepted: durations from 0"));
}

absl::Status CheckCount(const char* flag, int64_t value) {
  if (value >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is ", value, "; accepted: 0 (no limit) and above"));
}

absl::Status OnlyWith(const char* flag, const char* needed) {
  return absl::InvalidArgumentError(absl::StrCat(flag, " is set; accepted only with ", needed));
}

// That flags which would do nothing here are at their defaults.
absl::Status CheckUnused(std::initializer_list<const char*> names, const char* needed) {
  for (const char* name : names) {
    const absl::CommandLineFlag* const flag = absl::FindCommandLineFlag(name);
    if (flag->CurrentValue() != flag->DefaultValue()) {
      return OnlyWith(absl::StrCat("--", name).c_str(), needed);
    }
  }
  return absl::OkStatus();
}

// The first that is not OK.
absl::Status FirstError(std::initializer_list<absl::Status> statuses) {
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const char* flag, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!(file && text << file.rdbuf())) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is '", path, "'; accepted: a file that can be read and is not empty"));
  }
  return text.str();
}

absl::Status Prefixed(const std::string& prefix, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(prefix, ": ", status.message()));
}

std::vector<std::string> SplitList(const std::string& list) {
  if (list.empty()) return {};
  return absl::StrSplit(list, ',');
}

template <typename Enum>
absl::StatusOr<Enum> NamedFlag(const char* flag, const std::string& name,
                               std::initializer_list<Enum> values) {
  std::string accepted;
  for (const Enum value : values) {
    if (name == Name(value)) return value;
    absl::StrAppend(&accepted, accepted.empty() ? "" : ", ", Name(value));
  }
  return absl::InvalidArgumentError(absl::StrCat(flag, " is '", name, "'; accepted: ", accepted));
}

absl::StatusOr<WorkloadOptions> WorkloadFromFlags() {
  const std::string dtype_name = absl::GetFlag(FLAGS_dtype);
  const std::optional<DType> dtype = DTypeFromName(dtype_name);
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--dtype is '", dtype_name, "'; accepted: float16, bfloat16, float32"));
  }
  const absl::StatusOr<LoadDirection> direction =
      NamedFlag("--direction", absl::GetFlag(FLAGS_direction),
                {LoadDirection::kForward, LoadDirection::kBackward, LoadDirection::kBoth});
  if (!direction.ok()) return direction.status();
  WorkloadOptions workload{.direction = *direction,
                           .heads = absl::GetFlag(FLAGS_heads),
                           .kv_heads = absl::GetFlag(FLAGS_kv_heads),
                           .head_dim = absl::GetFlag(FLAGS_head_dim),
                           .seq_len = absl::GetFlag(FLAGS_seq_len),
                           .q_len = absl::GetFlag(FLAGS_q_len),
                           .dtype = *dtype,
                           .alibi = absl::GetFlag(FLAGS_alibi),
                           .causal = absl::GetFlag(FLAGS_causal),
                           .want_lse = absl::GetFlag(FLAGS_want_lse),
                           .bias_gradient = absl::GetFlag(FLAGS_bias_gradient),
                           .num_inputs = absl::GetFlag(FLAGS_inputs),
                           .seed = absl::GetFlag(FLAGS_seed)};
  if (const auto eps = absl::GetFlag(FLAGS_eps); eps.has_value()) workload.eps = *eps;
  return workload;
}

absl::StatusOr<MixOptions> MixFromFlags() {
  const absl::StatusOr<WorkloadOptions> workload = WorkloadFromFlags();
  if (!workload.ok()) return workload.status();
  MixOptions mix{.seed = absl::GetFlag(FLAGS_seed)};
  const std::string mix_path = absl::GetFlag(FLAGS_mix);
  const std::string trace_path = absl::GetFlag(FLAGS_trace);
  if (!mix_path.empty() && !trace_path.empty()) {
    return absl::InvalidArgumentError("--mix and --trace are both set; accepted: one of them");
  }
  if (!mix_path.empty()) {
    const absl::StatusOr<std::string> text = ReadFile("--mix", mix_path);
    if (!text.ok()) return text.status();
    absl::StatusOr<std::vector<MixEntryOptions>> entries = ParseMix(*text, *workload);
    if (!entries.ok()) return Prefixed(mix_path, entries.status());
    mix.entries = *std::move(entries);
    return mix;
  }
  mix.entries = {{.workload = *workload,
                  .seq_len = {.min = workload->seq_len, .max = workload->seq_len},
                  .q_len = {.min = workload->q_len, .max = workload->q_len}}};
  if (!trace_path.empty()) {
    const absl::StatusOr<std::string> text = ReadFile("--trace", trace_path);
    if (!text.ok()) return text.status();
    absl::StatusOr<std::vector<TraceRow>> trace = ParseTrace(*text);
    if (!trace.ok()) return Prefixed(trace_path, trace.status());
    mix.trace = *std::move(trace);
  }
  return mix;
}

absl::StatusOr<LoadShape> ShapeFromFlags(const MixOptions& mix) {
  const bool sweep = absl::GetFlag(FLAGS_sweep);
  const double rate = absl::GetFlag(FLAGS_rate);
  const bool timed_trace = !mix.trace.empty() && mix.trace.back().arrival > absl::ZeroDuration();
  const bool by_trace = timed_trace && rate == 0 && !sweep;
  const bool open = rate != 0 || sweep || by_trace;
  const absl::optional<int> concurrency = absl::GetFlag(FLAGS_concurrency);
  if (open && concurrency.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--concurrency is ", *concurrency,
                     "; accepted only in a closed loop: without --rate, --sweep and the times of "
                     "--trace (an open loop has --max_outstanding)"));
  }
  const int64_t warmup_requests = absl::GetFlag(FLAGS_warmup_requests);
  if (open && warmup_requests != 0) {
    return OnlyWith("--warmup_requests", "a closed loop; an open loop has --warmup");
  }
  const absl::StatusOr<ArrivalKind> arrivals = NamedFlag(
      "--arrivals", absl::GetFlag(FLAGS_arrivals), {ArrivalKind::kPoisson, ArrivalKind::kConstant});
  if (!arrivals.ok()) return arrivals.status();

  LoadShape shape{.loop = open ? LoopKind::kOpen : LoopKind::kClosed,
                  .trace_times = by_trace,
                  .trace_speed = absl::GetFlag(FLAGS_trace_speed),
                  .arrivals = *arrivals,
                  .rate = rate,
                  .max_outstanding = absl::GetFlag(FLAGS_max_outstanding),
                  .send_threads = absl::GetFlag(FLAGS_send_threads),
                  .spin = absl::GetFlag(FLAGS_spin),
                  .concurrency = concurrency.value_or(8),
                  .warmup_requests = warmup_requests,
                  .requests = absl::GetFlag(FLAGS_requests),
                  .seed = absl::GetFlag(FLAGS_seed)};
  // What is counted in requests is not cut short by a default.
  shape.duration = absl::GetFlag(FLAGS_duration)
                       .value_or(shape.requests > 0 ? absl::InfiniteDuration() : absl::Seconds(10));
  shape.warmup = absl::GetFlag(FLAGS_warmup)
                     .value_or(warmup_requests > 0 ? absl::InfiniteDuration() : absl::Seconds(1));
  constexpr double kMaxRate = 1e6;
  if (absl::Status status =
          FirstError({CheckRange("--rate", rate, 0.0, kMaxRate),
                      CheckRange("--trace_speed", shape.trace_speed, 1e-3, 1e6),
                      CheckRange("--max_outstanding", shape.max_outstanding, 1, 65536),
                      CheckRange("--send_threads", shape.send_threads, 1, 64),
                      CheckNotNegative("--spin", shape.spin),
                      CheckRange("--concurrency", shape.concurrency, 1, 1024),
                      CheckCount("--requests", shape.requests),
                      CheckCount("--warmup_requests", warmup_requests),
                      CheckPositive("--duration", shape.duration),
                      CheckNotNegative("--warmup", shape.warmup)});
      !status.ok()) {
    return status;
  }
  const bool endless = shape.duration == absl::InfiniteDuration();
  if (endless && shape.requests == 0 && !by_trace) {
    return absl::InvalidArgumentError("--duration is inf; accepted only with --requests");
  }
  if (shape.warmup == absl::InfiniteDuration() && warmup_requests == 0) {
    return absl::InvalidArgumentError("--warmup is inf; accepted only with --warmup_requests");
  }
  if (!open) {
    if (absl::Status status = CheckUnused({"arrivals", "max_outstanding", "send_threads", "spin"},
                                          "an open loop: --rate, --sweep or the times of --trace");
        !status.ok()) {
      return status;
    }
  }
  if (!by_trace) {
    if (absl::Status status = CheckUnused(
            {"trace_speed"}, "the times of --trace, which --rate and --sweep leave aside");
        !status.ok()) {
      return status;
    }
  }
  return shape;
}

absl::StatusOr<SweepOptions> SweepFromFlags() {
  SweepOptions sweep{.slo = absl::GetFlag(FLAGS_slo),
                     .search = {.first_rate = absl::GetFlag(FLAGS_rate),
                                .step_factor = absl::GetFlag(FLAGS_sweep_step),
                                .precision = absl::GetFlag(FLAGS_sweep_precision),
                                .max_rate = absl::GetFlag(FLAGS_max_rate)}};
  if (absl::Status status =
          FirstError({CheckPositive("--slo", sweep.slo),
                      CheckRange("--sweep_step", sweep.search.step_factor, 1.01, 10.0),
                      CheckRange("--sweep_precision", sweep.search.precision, 0.001, 1.0),
                      CheckRange("--max_rate", sweep.search.max_rate, 0.0, 1e6)});
      !status.ok()) {
    return status;
  }
  if (absl::GetFlag(FLAGS_requests) != 0) {
    return absl::InvalidArgumentError(
        "--requests is set; accepted: not with --sweep, whose steps last --duration");
  }
  return sweep;
}

absl::StatusOr<MixCallerOptions> CallerFromFlags(const LoadShape& shape) {
  const absl::StatusOr<LoadTransport> transport =
      NamedFlag("--transport", absl::GetFlag(FLAGS_transport),
                {LoadTransport::kInline, LoadTransport::kStream, LoadTransport::kSharedMemory});
  if (!transport.ok()) return transport.status();
  MixCallerOptions options{
      .transport = *transport,
      .slots = shape.loop == LoopKind::kOpen ? shape.max_outstanding : shape.concurrency,
      .timeout = absl::GetFlag(FLAGS_timeout),
      .verify_share = absl::GetFlag(FLAGS_verify),
      .seed = absl::GetFlag(FLAGS_seed)};
  AttentionClient::Options client{.num_connections = absl::GetFlag(FLAGS_connections),
                                  // A request that is tried again would hide an error and count
                                  // two as one.
                                  .retry = {.max_attempts = 1},
                                  .max_message_bytes = absl::GetFlag(FLAGS_max_message_bytes)};
  constexpr int64_t kMaxMessageBytes = std::numeric_limits<int32_t>::max();
  if (absl::Status status = FirstError({CheckRange("--connections", client.num_connections, 1, 256),
                                        CheckRange("--max_message_bytes", client.max_message_bytes,
                                                   int64_t{1}, kMaxMessageBytes),
                                        CheckPositive("--timeout", options.timeout),
                                        CheckRange("--verify", options.verify_share, 0.0, 1.0)});
      !status.ok()) {
    return status;
  }
  const std::vector<std::string> targets = SplitList(absl::GetFlag(FLAGS_target));
  if (targets.empty() || std::count(targets.begin(), targets.end(), "") > 0) {
    return absl::InvalidArgumentError(
        "--target is empty or has an empty part; accepted: host:port or unix:PATH, separated by "
        "commas");
  }
  for (const std::string& target : targets) {
    if (*transport == LoadTransport::kSharedMemory && !absl::StartsWith(target, "unix:")) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--target is '", target, "'; accepted with --transport=shared_memory: unix:PATH"));
    }
    client.target = target;
    if (absl::Status status = ConnectionOptionsFromFlags(&client); !status.ok()) return status;
    options.clients.push_back(client);
  }
  return options;
}

// Only JSON goes to stdout, and no file takes two reports.
absl::Status CheckOutputs(const LoadOutputs& outputs) {
  std::map<std::string, const char*> flags;
  for (const auto& [flag, path] :
       {std::pair{"--json", &outputs.json}, std::pair{"--csv", &outputs.csv},
        std::pair{"--hdr", &outputs.hdr}, std::pair{"--html", &outputs.html}}) {
    if (path->empty()) continue;
    if (*path == "-" && path != &outputs.json) {
      return absl::InvalidArgumentError(
          absl::StrCat(flag, " is '-'; accepted: a file (only --json may be written to stdout)"));
    }
    const auto [other, is_new] = flags.emplace(*path, flag);
    if (!is_new) {
      return absl::InvalidArgumentError(absl::StrCat(flag, " is '", *path, "', as is ",
                                                     other->second, "; accepted: another file"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadCommand> CommandFromFlags() {
  LoadCommand command{.limits = {.max_lag = absl::GetFlag(FLAGS_max_lag),
                                 .max_lag_share = absl::GetFlag(FLAGS_max_lag_share),
                                 .min_achieved_share = absl::GetFlag(FLAGS_min_achieved)},
                      .sweep = absl::GetFlag(FLAGS_sweep),
                      .metrics = SplitList(absl::GetFlag(FLAGS_metrics)),
                      .verify_rows = absl::GetFlag(FLAGS_verify_rows),
                      .progress = absl::GetFlag(FLAGS_progress) || isatty(STDERR_FILENO) == 1,
                      .allow_errors = absl::GetFlag(FLAGS_allow_errors),
                      .outputs = {.json = absl::GetFlag(FLAGS_json),
                                  .csv = absl::GetFlag(FLAGS_csv),
                                  .hdr = absl::GetFlag(FLAGS_hdr),
                                  .html = absl::GetFlag(FLAGS_html)}};
  absl::StatusOr<MixOptions> mix = MixFromFlags();
  if (!mix.ok()) return mix.status();
  command.mix = *std::move(mix);
  const absl::StatusOr<LoadShape> shape = ShapeFromFlags(command.mix);
  if (!shape.ok()) return shape.status();
  command.shape = *shape;
  if (command.sweep) {
    const absl::StatusOr<SweepOptions> sweep = SweepFromFlags();
    if (!sweep.ok()) return sweep.status();
    command.sweep_options = *sweep;
  } else if (absl::Status status =
                 CheckUnused({"slo", "sweep_step", "sweep_precision", "max_rate"}, "--sweep");
             !status.ok()) {
    return status;
  }
  absl::StatusOr<MixCallerOptions> caller = CallerFromFlags(command.shape);
  if (!caller.ok()) return caller.status();
  command.caller = *std::move(caller);
  if (!command.metrics.empty() && command.metrics.size() != command.caller.clients.size()) {
    return absl::InvalidArgumentError(absl::StrCat("--metrics names ", command.metrics.size(),
                                                   " addresses; accepted: one for each of the ",
                                                   command.caller.clients.size(), " targets"));
  }
  if (absl::Status status =
          FirstError({CheckPositive("--max_lag", command.limits.max_lag),
                      CheckRange("--max_lag_share", command.limits.max_lag_share, 0.0, 1e6),
                      CheckRange("--min_achieved", command.limits.min_achieved_share, 0.0, 1.0),
                      CheckRange("--verify_rows", command.verify_rows, 1, 4096),
                      CheckOutputs(command.outputs)});
      !status.ok()) {
    return status;
  }
  return command;
}

}  // namespace flashbias::client
