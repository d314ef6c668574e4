// A mutex with conditional waiting and thread-safety annotations, over std::mutex.
//
// absl::Mutex as distributions build it is invisible to ThreadSanitizer, which then reports every
// access that it orders; std::mutex is seen. Thread-safety: that is what it is for.
#ifndef FLASHBIAS_SERVER_MUTEX_H_
#define FLASHBIAS_SERVER_MUTEX_H_

#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace flashbias::server {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }

  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

  // Lets waiters look at their conditions again once the mutex is free; call it wherever a
  // condition may have come true. Under the mutex, because after its release the mutex may be gone.
  void NotifyWaiters() ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) { changed_.notify_all(); }

  // Waits, with the mutex released, until `condition()` holds or real time reaches `deadline`;
  // returns whether it holds. `condition` is called with the mutex held.
  template <typename Condition>
  bool Await(Condition condition, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    std::unique_lock<std::mutex> lock(mutex_, std::adopt_lock);
    bool holds = condition();
    while (!holds && (deadline == absl::InfiniteFuture() || absl::Now() < deadline)) {
      if (deadline == absl::InfiniteFuture()) {
        changed_.wait(lock);
      } else {
        changed_.wait_until(lock, absl::ToChronoTime(deadline));
      }
      holds = condition();
    }
    lock.release();  // the caller holds it still
    return holds;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }

 private:
  Mutex* const mutex_;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_MUTEX_H_
