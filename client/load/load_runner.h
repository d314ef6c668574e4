// Sends a workload's requests in a closed loop: each of `concurrency` threads has one request in
// flight and sends the next when the answer is there.
//
// Thread-safety: Run is for one thread. Ownership: everything that Run is given must outlive it.
#ifndef FLASHBIAS_CLIENT_LOAD_LOAD_RUNNER_H_
#define FLASHBIAS_CLIENT_LOAD_LOAD_RUNNER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "client/load/latency_histogram.h"
#include "client/load/verifier.h"
#include "client/load/workload.h"

namespace flashbias::client {

// Ends at whichever comes first.
struct LoadLimit {
  absl::Duration duration = absl::InfiniteDuration();
  int64_t requests = 0;  // 0: any number
};

// The limit that a command line means: a number of requests without a duration (nullopt) is not cut
// short by `default_duration`.
LoadLimit LimitFrom(std::optional<absl::Duration> duration, int64_t requests,
                    absl::Duration default_duration);

struct LoadOptions {
  int concurrency = 8;  // at least 1
  LoadLimit limit = {};
  absl::Duration timeout = absl::Seconds(60);  // of each request
  double verify_share = 0;                     // of the answers, 0 to 1
  uint64_t seed = 1;                           // of which answers are verified
};

struct StageTotals {
  absl::Duration receive = {}, queue = {}, compute = {}, send = {};
  absl::Duration upload = {}, kernel = {}, download = {};  // parts of compute
  int64_t calls = 0;                                       // one or two a request
  int64_t batch_requests = 0;
  int64_t tiles_computed = 0;
  int64_t tiles_skipped = 0;
};

struct LoadErrors {
  int64_t count = 0;
  std::string first_message = {};
};

struct LoadResult {
  absl::Duration elapsed = {};    // from the first request to the last answer
  LatencyHistogram latency = {};  // of the requests that succeeded
  int64_t succeeded = 0;
  int64_t failed = 0;
  std::map<absl::StatusCode, LoadErrors> errors = {};
  StageTotals stages = {};  // sums over the requests that succeeded
  std::vector<AnswerSample> samples = {};
};

// What is known while requests run.
struct LoadProgress {
  absl::Duration elapsed = {};
  int64_t succeeded = 0;
  int64_t failed = 0;
};

// Makes the forward calls that a load of backward calls is of, and stores their answers in
// `workload`; nothing for other loads. Errors are the client's.
absl::Status MakeForwardCalls(AttentionClient* client, absl::Duration timeout, Workload* workload);

// `verifier` may be null when verify_share is 0. `progress` is called about once a second on the
// calling thread; may be null. Setting `stop` ends the run early; requests in flight are awaited.
// A thread whose request failed pauses 10 ms, so that a server that is away is not flooded.
LoadResult RunLoad(AttentionClient* client, const Workload& workload, const Verifier* verifier,
                   const LoadOptions& options, const std::atomic<bool>& stop,
                   const std::function<void(const LoadProgress&)>& progress);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_LOAD_RUNNER_H_
