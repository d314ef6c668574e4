#include "client/load/engine/pacing.h"

#include <sys/prctl.h>

#include <cerrno>
#include <ctime>

namespace flashbias::client {

absl::Duration MonotonicNow() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return absl::DurationFromTimespec(now);
}

void AskForExactWakeups() { prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); }

void SleepUntil(absl::Duration moment, absl::Duration spin) {
  if (MonotonicNow() < moment - spin) {
    const timespec until = absl::ToTimespec(moment - spin);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
    }
  }
  // ToTimespec rounds down to nanoseconds, so this ends the wait without `spin` too.
  while (MonotonicNow() < moment) {
  }
}

}  // namespace flashbias::client
