// The time, injected so that tests own it.
//
// Thread-safety: Now may be called from any thread.
#ifndef FLASHBIAS_SERVER_CLOCK_H_
#define FLASHBIAS_SERVER_CLOCK_H_

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace flashbias::server {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

class SystemClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_CLOCK_H_
