// Copies large amounts of memory with several threads: one thread does not reach the memory's
// bandwidth.
//
// The calling thread copies too and never waits for a helper to become free, only for the chunks
// that helpers have begun: a call takes at most what it would take alone, plus one chunk.
//
// Thread-safety: thread-safe. The pool must outlive its calls.
#ifndef FLASHBIAS_WIRE_COPY_POOL_H_
#define FLASHBIAS_WIRE_COPY_POOL_H_

#include <cstddef>
#include <deque>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"

namespace flashbias::wire {

class CopyPool {
 public:
  struct Piece {
    const void* from = nullptr;
    void* to = nullptr;
    size_t bytes = 0;
  };

  // Smaller calls are copied by the caller alone: waking threads would cost more than they save.
  static constexpr size_t kSharedFrom = size_t{1} << 20;
  // What one thread takes at a time.
  static constexpr size_t kChunkBytes = size_t{256} << 10;

  // `threads` of them copy at once, the caller included; 1 or less: only the caller.
  explicit CopyPool(int threads);
  CopyPool(const CopyPool&) = delete;
  CopyPool& operator=(const CopyPool&) = delete;
  ~CopyPool();

  // Returns when all is copied. REQUIRES: nothing overlaps.
  void Copy(absl::Span<const Piece> pieces) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Job;

  void Help() ABSL_LOCKS_EXCLUDED(mutex_);
  void RemoveLocked(Job* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasWorkLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !jobs_.empty();
  }

  absl::Mutex mutex_;
  std::deque<Job*> jobs_ ABSL_GUARDED_BY(mutex_);  // with chunks that nobody has begun, perhaps
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::vector<std::thread> helpers_;  // last: they use what stands above
};

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_COPY_POOL_H_
