// Page-locked host memory that is recycled: where requests and results should lie, and what runs
// stage the rest in.
//
// cudaHostAlloc and cudaFreeHost wait for the device, so memory is taken in size classes (four to a
// doubling), kept when it is given back, and given to the next one who asks for its class. Classes
// up to 256 KiB are cut from slabs of 2 MiB. Where the bound is reached, idle memory of other
// classes makes room, slabs of which nothing is in use last. What one large request took and nobody
// has used for a while goes back when ReleaseIdle is called.
//
// Memory of others that is registered here is page-locked too, and counts towards no bound of the
// pool's: whoever registers bounds it.
//
// Thread-safety: as HostAllocator, and Contains from any thread.
#ifndef FLASHBIAS_KERNELS_CUDA_PINNED_POOL_H_
#define FLASHBIAS_KERNELS_CUDA_PINNED_POOL_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kernels/cuda/device_api.h"
#include "kernels/host_memory.h"

namespace flashbias::cuda {

class PinnedPool : public HostAllocator {
 public:
  struct Usage {
    size_t used_bytes = 0;        // of blocks that someone holds, their classes' sizes
    size_t size_bytes = 0;        // taken from the system
    size_t registered_bytes = 0;  // of others, registered here
  };

  // Memory comes from the first of `devices` that has some to give: any of them may have failed.
  // `max_bytes` bounds Usage::size_bytes.
  PinnedPool(std::vector<std::shared_ptr<DeviceApi>> devices, size_t max_bytes);
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;
  ~PinnedPool() override;

  // RESOURCE_EXHAUSTED naming the bytes asked for, held by others and allowed; also where the
  // system has no more.
  absl::StatusOr<HostBlock> Allocate(size_t bytes) override ABSL_LOCKS_EXCLUDED(mutex_);

  // RESOURCE_EXHAUSTED naming the bytes and the error of the last device that was asked.
  absl::StatusOr<HostRegistration> Register(void* data, size_t bytes) override
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether all `bytes` from `data` on lie in one piece of memory of the pool, or in one that is
  // registered.
  bool Contains(const void* data, size_t bytes) const ABSL_LOCKS_EXCLUDED(mutex_);

  // Less than the bound: a block takes up to a quarter more than it was asked for.
  size_t max_total_bytes() const override { return max_bytes_ / 5 * 4; }

  // Gives memory back that was last used before `unused_since`, the largest first, while more than
  // `kept_bytes` are idle.
  void ReleaseIdle(absl::Time unused_since, size_t kept_bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  size_t max_bytes() const { return max_bytes_; }
  Usage usage() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Free(void* data, size_t bytes) override ABSL_LOCKS_EXCLUDED(mutex_);
  void Unregister(void* data) override ABSL_LOCKS_EXCLUDED(mutex_);

  // Adds idle memory of the class; false where bound or system have no more.
  bool GrowLocked(size_t class_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Chunks of which nothing is in use, the largest first and slabs last: fewest waits for the
  // device.
  std::vector<uintptr_t> IdleChunksLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives idle memory of other classes back until `bytes` more fit under the bound.
  bool MakeRoomLocked(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void* TakeFromSystemLocked(size_t bytes, size_t class_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Constant after construction.
  const std::vector<std::shared_ptr<DeviceApi>> devices_;
  const size_t max_bytes_;

  mutable absl::Mutex mutex_;
  // Everything taken from the system, by address, and who gave it. A chunk is a block or a slab of
  // blocks of one class.
  struct Chunk {
    void* memory;
    size_t bytes;
    DeviceApi* device;
    size_t class_bytes;
    size_t used_blocks;
    absl::Time idle_since;  // where used_blocks is 0
  };
  Chunk& ChunkOfLocked(const void* block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives back a chunk of which nothing is in use.
  void ReleaseLocked(std::map<uintptr_t, Chunk>::iterator chunk)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same, but for the memory itself, which the caller frees.
  void ForgetLocked(std::map<uintptr_t, Chunk>::iterator chunk)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::map<uintptr_t, Chunk> chunks_ ABSL_GUARDED_BY(mutex_);
  // Idle blocks: class bytes -> addresses, last in first out.
  std::map<size_t, std::vector<void*>> idle_ ABSL_GUARDED_BY(mutex_);
  // What is registered, by address, and with whom.
  struct Registered {
    size_t bytes;
    DeviceApi* device;
  };
  std::map<uintptr_t, Registered> registered_ ABSL_GUARDED_BY(mutex_);
  Usage usage_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_PINNED_POOL_H_
