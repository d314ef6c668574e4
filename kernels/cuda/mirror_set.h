// The mirrors of one backend: host blocks whose contents are on their way to the device before
// their problems run.
//
// They share the arena with the runs and give way to them: a mirror is started only where there is
// room at once, all together take a bounded share, and RevokeIdle gives back what no run uses.
//
// Thread-safety: all methods from any thread. What the parts point to must outlive the set, and the
// set all that it handed out.
#ifndef FLASHBIAS_KERNELS_CUDA_MIRROR_SET_H_
#define FLASHBIAS_KERNELS_CUDA_MIRROR_SET_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cuda/device_api.h"
#include "kernels/cuda/device_arena.h"
#include "kernels/cuda/device_health.h"
#include "kernels/cuda/mirror.h"
#include "kernels/cuda/pinned_pool.h"
#include "kernels/host_memory.h"
#include "kernels/upload_ahead.h"

namespace flashbias::cuda {

// A mirror that a run has pinned; movable.
class MirrorUse {
 public:
  MirrorUse() = default;
  MirrorUse(MirrorUse&& other) noexcept { *this = std::move(other); }
  MirrorUse& operator=(MirrorUse&& other) noexcept {
    std::swap(mirror_, other.mirror_);
    return *this;
  }
  ~MirrorUse() {
    if (mirror_ != nullptr) mirror_->Unpin();
  }

  explicit operator bool() const { return mirror_ != nullptr; }
  Mirror* operator->() const { return mirror_.get(); }

 private:
  friend class MirrorSet;
  explicit MirrorUse(std::shared_ptr<Mirror> pinned) : mirror_(std::move(pinned)) {}

  std::shared_ptr<Mirror> mirror_;
};

class MirrorSet {
 public:
  struct Parts {
    DeviceApi* device = nullptr;
    DeviceArena* arena = nullptr;
    DeviceHealth* health = nullptr;
    const PinnedPool* pool = nullptr;
    size_t max_bytes = 0;    // of all mirrors together
    size_t piece_bytes = 0;  // of a copy, at least; smaller blocks get no mirror
  };

  explicit MirrorSet(const Parts& parts) : parts_(parts) {}
  MirrorSet(const MirrorSet&) = delete;
  MirrorSet& operator=(const MirrorSet&) = delete;
  // REQUIRES: the device is current.
  ~MirrorSet();

  // Null: not worth it, no room, or the device fails.
  std::unique_ptr<UploadAhead> Start(const HostBlock& inputs) ABSL_LOCKS_EXCLUDED(mutex_);

  // The complete mirror that has this byte, pinned; false: there is none.
  MirrorUse Use(const void* host) ABSL_LOCKS_EXCLUDED(mutex_);

  // Gives back the device memory of all mirrors that no run has pinned, and of the others as soon
  // as they are not. Waits for copies that are under way.
  void RevokeIdle() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class Filling;

  void Remove(const std::shared_ptr<Mirror>& mirror) ABSL_LOCKS_EXCLUDED(mutex_);

  const Parts parts_;
  std::atomic<size_t> total_bytes_ = 0;  // that mirrors hold; grows under mutex_ only

  absl::Mutex mutex_;
  Stream* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;  // made by the first
  std::vector<std::shared_ptr<Mirror>> mirrors_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_MIRROR_SET_H_
