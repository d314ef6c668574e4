// Everything that a report of flashbias-load shows. Plain values, made by the program and written
// by report_table.h, report_json.h, report_csv.h, report_hdr.h and report_html.h.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_LOAD_REPORT_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_LOAD_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/attention_types.h"
#include "client/load/engine/load_result.h"
#include "client/load/engine/server_metrics.h"
#include "client/load/engine/verdict.h"
#include "client/load/requests/verifier.h"

namespace flashbias::client {

enum class LoopKind { kOpen, kClosed };

// One load that was driven.
struct RunReport {
  LoopKind loop = LoopKind::kClosed;
  // That was to be offered, requests a second; 0 in a closed loop and by the times of a trace.
  double rate = 0;
  int concurrency = 0;  // closed loop: callers; open loop: bound of requests outstanding
  LoadResult result = {};
  Verdict verdict = {};
  std::optional<VerifyReport> verify = {};  // absent: not asked for
  // Over the whole run, warm-up included, as the bytes are that they are divided by.
  double client_cpu_seconds = 0;
  std::optional<double> server_cpu_seconds = {};  // absent: its metrics were not asked
  int64_t cpu_bytes = 0;                          // of tensors in and out, in that time
  MetricSamples server_growth = {};               // of its counters; empty: not asked
};

struct SweepReport {
  absl::Duration slo = {};                 // bound of the p99 latency
  std::vector<RunReport> steps = {};       // in the order driven
  std::vector<bool> met = {};              // [steps]
  std::optional<double> best_rate = {};    // the highest offered rate that met it
  std::optional<double> bound_rate = {};   // the lowest above that which did not
  std::optional<RunReport> overload = {};  // at twice best_rate
};

// One entry of the mix.
struct EntryReport {
  std::string name = {};
  double share = 1;                               // of the requests
  int64_t request_bytes = 0, response_bytes = 0;  // of the longest
};

struct LoadReport {
  std::string version = {};  // of the program
  std::string command = {};  // as it was called, tokens left out
  absl::Time started = {};
  uint64_t seed = 1;
  std::vector<std::string> targets = {};
  std::vector<ServerInfo> servers = {};  // [targets]
  std::string transport = {};
  int connections = 1;
  std::string arrivals = {};    // "poisson", "constant" or "trace"; empty in a closed loop
  absl::Duration warmup = {};   // infinite: only warmup_requests end it
  int64_t warmup_requests = 0;  // that end it sooner; 0: any number
  int client_cores = 0;
  std::vector<EntryReport> entries = {};
  std::optional<RunReport> run = {};      // either this
  std::optional<SweepReport> sweep = {};  // or this
};

// Whether at least 99 % of the requests that were offered succeeded within `slo`, in a valid run: a
// load that was sent late proves nothing of the server.
bool MeetsObjective(const RunReport& run, absl::Duration slo);

// OK, or why the program ends with an error: an answer was wrong, no request succeeded, none was
// verified although asked for, requests failed and `allow_errors` is false, the run is invalid, no
// rate met the objective, or twice the best rate met it although a lower one had not.
absl::Status Judge(const LoadReport& report, bool allow_errors);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_LOAD_REPORT_H_
