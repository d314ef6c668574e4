// Device memory for the runs of one backend, within a bound.
//
// Memory is taken from the device in regions, when no region has room, and kept: once warm, nothing
// on the way of a run allocates. Idle regions are given back only where bound or device have no
// room for a larger one. Ranges are cut from the regions first fit; there are few at a time, one or
// two for each run in flight.
//
// Thread-safety: all methods from any thread on which the device is current. Ranges must be gone
// before the arena.
#ifndef FLASHBIAS_KERNELS_CUDA_DEVICE_ARENA_H_
#define FLASHBIAS_KERNELS_CUDA_DEVICE_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cuda/device_api.h"

namespace flashbias::cuda {

class DeviceArena;

// A reserved range, given back when it goes; movable.
class DeviceRange {
 public:
  DeviceRange() = default;
  DeviceRange(DeviceRange&& other) noexcept { *this = std::move(other); }
  DeviceRange& operator=(DeviceRange&& other) noexcept {
    std::swap(arena_, other.arena_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~DeviceRange();

  char* data() const { return data_; }

 private:
  friend class DeviceArena;
  DeviceRange(DeviceArena* arena, char* data) : arena_(arena), data_(data) {}

  DeviceArena* arena_ = nullptr;
  char* data_ = nullptr;
};

class DeviceArena {
 public:
  struct Usage {
    size_t used_bytes = 0;  // of ranges
    size_t size_bytes = 0;  // of regions
  };

  // The device must outlive the arena; `max_bytes` bounds Usage::size_bytes. `reclaim`, where it is
  // given, makes holders that can do without their ranges give them back; it is called by Reserve
  // before it waits, with no mutex held, while nobody else is granted a range.
  DeviceArena(DeviceApi* device, size_t max_bytes, std::function<void()> reclaim = nullptr);
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;
  ~DeviceArena();

  // A range aligned to 256 bytes. Waits, first come first served, while others hold what it takes;
  // so nobody may hold a range that cannot be reclaimed and ask for a second one.
  // RESOURCE_EXHAUSTED: it takes more than the bound, or than the device has while nobody holds
  // anything.
  absl::StatusOr<DeviceRange> Reserve(size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same without waiting for others or for the device to give idle regions back. UNAVAILABLE:
  // Reserve would have to.
  absl::StatusOr<DeviceRange> TryReserve(size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  size_t max_bytes() const { return max_bytes_; }
  Usage usage() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class DeviceRange;

  struct Region {
    char* memory = nullptr;
    size_t bytes = 0;
    std::map<size_t, size_t> used;  // offset -> bytes, disjoint
  };

  void Release(char* data) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<DeviceRange> ReserveInTurnLocked(size_t bytes, bool may_wait)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Null: there is no room now.
  char* FitLocked(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Giving idle regions back, which makes room for a larger one, waits for the device.
  bool GrowLocked(size_t bytes, bool may_wait) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives an idle region back; false: there is none.
  bool ShrinkLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Constant after construction.
  DeviceApi* const device_;
  const size_t max_bytes_;
  const std::function<void()> reclaim_;

  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  // Reserve draws a ticket and waits for its turn: a large range is not passed by small ones.
  uint64_t next_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Region> regions_ ABSL_GUARDED_BY(mutex_);
  Usage usage_ ABSL_GUARDED_BY(mutex_);
};

inline DeviceRange::~DeviceRange() {
  if (data_ != nullptr) arena_->Release(data_);
}

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_DEVICE_ARENA_H_
