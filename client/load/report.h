// What a load run found, as a table for people and as JSON for programs.
//
// Pure functions; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "client/attention_types.h"
#include "client/load/load_runner.h"
#include "client/load/verifier.h"
#include "client/load/workload.h"

namespace flashbias::client {

struct LoadReport {
  std::string target = {};
  int connections = 1;
  int concurrency = 1;
  ServerInfo server = {};
  WorkloadOptions workload = {};
  RequestSummary request = {};
  LoadResult result = {};
  std::optional<VerifyReport> verify = {};  // absent: not asked for
};

std::string FormatTable(const LoadReport& report);

// Base units: seconds, bytes. One object, indented, ending in a newline.
std::string FormatJson(const LoadReport& report);

// OK, or why the run counts as failed: no request succeeded, an answer was wrong, nothing could be
// verified that should have been, or requests failed and `allow_errors` is false.
absl::Status Judge(const LoadReport& report, bool allow_errors);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_H_
