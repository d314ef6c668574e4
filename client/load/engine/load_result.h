// What a load run measured. Plain values.
//
// Three times of a call count: when it was to be sent (in an open loop by the schedule, in a closed
// loop when its caller became free), when it was sent, and when its answer was there.
//
//   latency = answer - intended     what a caller of a busy system waits
//   service = answer - sent         what the client and the server took
//   lag     = sent - intended       what the generator was late; a fault of the measurement
//
// Calls whose intended time lies in the warm-up are in no figure but bytes_with_warmup; their
// answers are verified as all others are.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_RESULT_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_RESULT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/attention_types.h"
#include "client/load/engine/latency_histogram.h"
#include "client/load/requests/answer_sample.h"

namespace flashbias::client {

// Sums over calls of the times that the server told, and of what it did.
struct StageTotals {
  absl::Duration receive = {}, queue = {}, compute = {}, send = {};
  absl::Duration upload = {}, kernel = {}, download = {};  // parts of compute
  int64_t calls = 0;                                       // one or two a request
  int64_t batch_requests = 0;
  int64_t tiles_computed = 0;
  int64_t tiles_skipped = 0;

  void Add(const Timing& timing);
  void Add(const StageTotals& other);
};

// The requests that ended with one status.
struct StatusResult {
  int64_t count = 0;
  std::string first_message = {};  // empty for OK
  LatencyHistogram latency = {};
};

// The requests of one entry of the mix, or to one target.
struct GroupResult {
  int64_t succeeded = 0;
  int64_t failed = 0;
  LatencyHistogram latency = {};  // of those that succeeded
};

// A stretch of the run. Requests count where they were intended to be sent. Percentiles are to
// 1/64.
struct Interval {
  absl::Duration start = {};   // from the end of the warm-up
  absl::Duration length = {};  // the last one may be shorter than the others
  int64_t offered = 0;
  int64_t succeeded = 0;
  int64_t failed = 0;                           // with those that were not sent
  int64_t bytes = 0;                            // of tensors in and out, of those that succeeded
  absl::Duration p50 = {}, p99 = {}, max = {};  // latency of those that succeeded
};

// A third of the run, as an Interval.
struct Third {
  absl::Duration length = {};
  int64_t offered = 0;
  int64_t succeeded = 0;
  absl::Duration p50 = {}, p90 = {};
};

struct LoadResult {
  absl::Duration elapsed = {};  // from the end of the warm-up to the last answer
  // How long requests were offered. Open loop: from the end of the warm-up to the last intended
  // time and one mean gap, so that offered / offering is the rate of the schedule. Closed loop:
  // elapsed.
  absl::Duration offering = {};
  int64_t offered = 0;  // requests that were to be sent; in a closed loop those sent
  int64_t succeeded = 0;
  int64_t failed = 0;      // answered with an error, and overflowed
  int64_t overflowed = 0;  // not sent, because too many were outstanding
  // Answered, whatever the status, before the schedule had ended or soon after, that is within the
  // 90th percentile of the latencies of the first third of the run (where there are no thirds,
  // their median): answers take a while to come even from a server that keeps up, and the first
  // third tells how long, before a backlog has grown. In a closed loop all that were answered.
  int64_t answered_in_time = 0;
  LatencyHistogram latency = {};  // of those that succeeded
  LatencyHistogram service = {};  // of the same
  LatencyHistogram lag = {};      // of all that were sent
  // Of all that were sent; OK is there too.
  std::map<absl::StatusCode, StatusResult> statuses = {};
  // Without those that overflowed, which had come to no entry and no target.
  std::vector<GroupResult> entries = {};  // [entries of the mix]
  std::vector<GroupResult> targets = {};  // [targets]
  std::vector<Interval> intervals = {};   // in order, without gaps; at most 300
  std::vector<Third> thirds = {};         // three of one length; empty: the run was too short
  StageTotals stages = {};                // over those that succeeded
  int64_t bytes = 0;                      // of tensors in and out, of those that succeeded
  int64_t bytes_with_warmup = 0;          // the same, with the warm-up's
  int64_t tokens = 0;                     // queries, of those that succeeded
  std::vector<AnswerSample> samples = {};
};

// What is known while requests run, warm-up included: counts since the last call of the observer.
struct LoadProgress {
  bool warming_up = false;
  absl::Duration elapsed = {};  // since the run began
  absl::Duration period = {};   // that the counts are of
  int64_t offered = 0;
  int64_t succeeded = 0;
  int64_t failed = 0;
  int64_t outstanding = 0;  // now
  int64_t bytes = 0;
  absl::Duration p50 = {}, p99 = {};  // latency of those that succeeded
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_RESULT_H_
