// How much host memory all streams together may hold: it is promised on a header's word, before
// the bytes are there.
//
// Thread-safety: thread-safe. Ownership: shared with every reservation, because an answer may stay
// in the transport longer than the server lives.
#ifndef FLASHBIAS_SERVER_STREAM_BUDGET_H_
#define FLASHBIAS_SERVER_STREAM_BUDGET_H_

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "server/mutex.h"

namespace flashbias::server {

class StreamBudget : public std::enable_shared_from_this<StreamBudget> {
 public:
  explicit StreamBudget(int64_t limit) : limit_(limit) {}

  int64_t limit() const { return limit_; }
  int64_t reserved() ABSL_LOCKS_EXCLUDED(mutex_);

  // Holds `bytes` for as long as the result lives; null: that is more than is left.
  // REQUIRES: owned by a shared_ptr; bytes >= 0.
  std::shared_ptr<void> Reserve(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const int64_t limit_;
  Mutex mutex_;
  int64_t reserved_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_STREAM_BUDGET_H_
