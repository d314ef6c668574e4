// A host block's copy in device memory, made while the block is being filled.
//
// What was written goes to the device in pieces, on the stream of all uploads ahead. A run that
// uses the mirror pins it meanwhile; one that nobody has pinned may be revoked at any time, because
// the block itself is still there.
//
// Thread-safety: all methods from any thread. Ownership: shared by whoever fills it, the MirrorSet
// and the runs that use it; what the parts point to must outlive it.
#ifndef FLASHBIAS_KERNELS_CUDA_MIRROR_H_
#define FLASHBIAS_KERNELS_CUDA_MIRROR_H_

#include <atomic>
#include <cstddef>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cuda/device_api.h"
#include "kernels/cuda/device_arena.h"
#include "kernels/cuda/device_health.h"

namespace flashbias::cuda {

class Mirror {
 public:
  struct Parts {
    DeviceApi* device = nullptr;
    DeviceHealth* health = nullptr;
    Stream* stream = nullptr;              // of all uploads ahead
    size_t piece_bytes = 0;                // of a copy, at least
    std::atomic<size_t>* total = nullptr;  // bytes of all mirrors; the mirror's are in it
  };

  // Of `bytes` from `host` on, into `range`. `event` is the mirror's own from now on.
  Mirror(const Parts& parts, const char* host, size_t bytes, DeviceRange range, Event* event);
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;
  // REQUIRES: nobody has it pinned.
  ~Mirror();

  bool Contains(const void* host) const;

  // As UploadAhead's.
  void Written(const char* data, size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void AllWritten() ABSL_LOCKS_EXCLUDED(mutex_);

  // Keeps its device memory until as many calls of Unpin. False: it has none, or is not complete.
  bool Pin() ABSL_LOCKS_EXCLUDED(mutex_);
  void Unpin() ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives its device memory back, once nobody has it pinned. Waits for copies that are under way.
  void Revoke() ABSL_LOCKS_EXCLUDED(mutex_);

  // REQUIRES for both: pinned.
  // Where the device has these bytes, aligned to kTensorAlignment; null: they were not copied, or
  // are not so aligned.
  char* Find(const void* host, size_t bytes) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Makes what is enqueued on `stream` from now on wait for the copies.
  ErrorCode Join(Stream* stream) const { return parts_.device->StreamWait(stream, event_); }

 private:
  // What was written without a gap, and how much of it was copied.
  struct Run {
    const char* begin;
    const char* copied;
    const char* end;
  };

  // Copies what is not copied of it yet; an error ends the mirror.
  void CopyLocked(Run& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReleaseLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Constant after construction.
  const Parts parts_;
  const char* const host_;
  const size_t bytes_;
  Event* const event_;  // recorded after every copy

  mutable absl::Mutex mutex_;
  DeviceRange range_ ABSL_GUARDED_BY(mutex_);  // empty: revoked
  std::vector<Run> runs_ ABSL_GUARDED_BY(mutex_);
  bool complete_ ABSL_GUARDED_BY(mutex_) = false;
  int pins_ ABSL_GUARDED_BY(mutex_) = 0;
  bool revoke_when_unpinned_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_MIRROR_H_
