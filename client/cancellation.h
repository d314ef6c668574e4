// Cancels calls from outside.
//
// One Cancellation may be given to any number of calls; Cancel() ends all of them with CANCELLED,
// and any call made with it afterwards. Thread-safety: thread-safe. Ownership: shared between the
// caller and the calls that were given it.
#ifndef FLASHBIAS_CLIENT_CANCELLATION_H_
#define FLASHBIAS_CLIENT_CANCELLATION_H_

#include <cstdint>
#include <functional>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace flashbias::client {

class Cancellation {
 public:
  Cancellation() = default;
  Cancellation(const Cancellation&) = delete;
  Cancellation& operator=(const Cancellation&) = delete;

  // Idempotent. The callbacks of the cancelled calls run soon after, on other threads or on this.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Has `on_cancel` run once when Cancel() is called; at once, on this thread, if it already was.
  // Returns the id for Unsubscribe, after which `on_cancel` may still run once if Cancel() is being
  // called at that moment: let it hold what it needs weakly.
  int64_t Subscribe(std::function<void()> on_cancel) ABSL_LOCKS_EXCLUDED(mutex_);
  void Unsubscribe(int64_t id) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<int64_t, std::function<void()>> subscribers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_CANCELLATION_H_
