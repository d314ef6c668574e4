#include "client/load/engine/progress_reporter.h"

#include "client/load/engine/pacing.h"

namespace flashbias::client {

void ProgressReporter::Poll(bool warming_up, int64_t outstanding) {
  const absl::Duration now = MonotonicNow();
  if (observer_ == nullptr || now - last_ < absl::Seconds(1)) return;
  LoadProgress progress = recorder_.TakeProgress();
  progress.warming_up = warming_up;
  progress.elapsed = now - start_;
  progress.period = now - last_;
  progress.outstanding = outstanding;
  last_ = now;
  observer_(progress);
}

}  // namespace flashbias::client
