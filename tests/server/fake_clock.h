// A clock that stands still until it is moved. Thread-safe.
#ifndef FLASHBIAS_TESTS_SERVER_FAKE_CLOCK_H_
#define FLASHBIAS_TESTS_SERVER_FAKE_CLOCK_H_

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/clock.h"
#include "server/mutex.h"

namespace flashbias::server {

class FakeClock final : public Clock {
 public:
  absl::Time Now() const override {
    MutexLock lock(&mutex_);
    return now_;
  }
  void Advance(absl::Duration duration) {
    MutexLock lock(&mutex_);
    now_ += duration;
  }

 private:
  mutable Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_) = absl::FromUnixSeconds(1'000'000);
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_TESTS_SERVER_FAKE_CLOCK_H_
