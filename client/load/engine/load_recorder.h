// Collects what becomes of a run's requests.
//
// Thread-safety: requests are recorded from any thread. There are several shards, each with a lock
// that a few threads share, so that recording does not make the threads of the transport wait for
// each other; Finish merges them.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_RECORDER_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_RECORDER_H_

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/load/engine/interval_series.h"
#include "client/load/engine/latency_histogram.h"
#include "client/load/engine/load_caller.h"
#include "client/load/engine/load_result.h"

namespace flashbias::client {

// From the end of the warm-up.
struct CallTimes {
  absl::Duration intended = {};
  absl::Duration sent = {};
  absl::Duration answered = {};
};

class LoadRecorder {
 public:
  LoadRecorder(int num_entries, int num_targets);

  // The schedule ends then, or sooner than was said before. Not called: never (a closed loop).
  void EndSchedule(absl::Duration end);

  // A request was sent, or was to be sent and is not.
  void RecordOffered() { offered_.fetch_add(1, std::memory_order_relaxed); }
  // Of one in the warm-up (`measured` is false) only progress is kept, its bytes and its sample.
  void RecordAnswer(const CallTimes& times, bool measured, CallOutcome outcome);
  void RecordOverflow(absl::Duration intended, bool measured);

  // The counts and percentiles since the last call; the other fields are the caller's to fill.
  LoadProgress TakeProgress();

  // REQUIRES: every request is recorded, and no thread records any more. Of an open loop where
  // EndSchedule was called.
  LoadResult Finish();

 private:
  // What is shown while the run goes on.
  struct Period {
    int64_t succeeded = 0;
    int64_t failed = 0;
    int64_t bytes = 0;
    LatencyHistogram latency{LatencyHistogram::Precision::kCoarse};
  };
  struct alignas(64) Shard {
    absl::Mutex mutex;
    LoadResult result ABSL_GUARDED_BY(mutex);
    IntervalSeries intervals ABSL_GUARDED_BY(mutex);
    // How long after the schedule's end answers came, of those that did.
    LatencyHistogram late ABSL_GUARDED_BY(mutex);
    absl::Duration last_intended ABSL_GUARDED_BY(mutex);
    absl::Duration last_answer ABSL_GUARDED_BY(mutex);
    Period period ABSL_GUARDED_BY(mutex);
  };

  // That of the calling thread.
  Shard& OwnShard();
  static void RecordMeasured(const CallTimes& times, absl::Duration schedule_end,
                             CallOutcome outcome, Shard* shard)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);

  std::vector<Shard> shards_;
  std::atomic<int64_t> schedule_end_ns_;
  std::atomic<int64_t> offered_{0};
  int64_t offered_before_ = 0;  // when TakeProgress was called last
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_RECORDER_H_
