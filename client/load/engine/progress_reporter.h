// Calls the observer of a run about once a second.
//
// Thread-safety: none; one thread polls it.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_PROGRESS_REPORTER_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_PROGRESS_REPORTER_H_

#include <cstdint>

#include "absl/time/time.h"
#include "client/load/engine/load_loop.h"
#include "client/load/engine/load_recorder.h"

namespace flashbias::client {

class ProgressReporter {
 public:
  // The run began at `start` (pacing.h).
  ProgressReporter(absl::Duration start, LoadRecorder* recorder, const LoadObserver& observer)
      : start_(start), last_(start), recorder_(*recorder), observer_(observer) {}

  // To be called more often than that.
  void Poll(bool warming_up, int64_t outstanding);

 private:
  const absl::Duration start_;
  absl::Duration last_;  // when the observer was called
  LoadRecorder& recorder_;
  const LoadObserver& observer_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_PROGRESS_REPORTER_H_
