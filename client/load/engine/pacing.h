// Waiting until a moment, as exactly as the kernel lets a thread.
//
// Moments are those of CLOCK_MONOTONIC, since its beginning: setting the system's time moves none.
// Thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_PACING_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_PACING_H_

#include "absl/time/time.h"

namespace flashbias::client {

absl::Duration MonotonicNow();

// Has the kernel wake the calling thread when it asks to, not up to 50 us later with others.
void AskForExactWakeups();

// Returns at `moment` or after it; at once where that has passed. In its last part, `spin`, the
// thread looks at the clock instead of sleeping.
void SleepUntil(absl::Duration moment, absl::Duration spin);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_PACING_H_
