// Memory that callers on this host share with the server: made or opened here, found by its id in
// requests, kept until nobody uses it.
//
// A region that is made is a memfd, sealed against growing and shrinking and with all of its pages
// allocated at once: touching it can fault neither beyond its end nor for want of memory, whatever
// a caller does with it. A caller may write to it at any time: nothing that decides over sizes or
// addresses may be read from it.
//
// Each is registered with the backends' allocator, so that their devices reach it without another
// copy. Where that fails the region works all the same; it is counted, and logged the first time.
//
// A region that is opened is memory of the caller's on a backend's device
// (kernels/device_memory.h): only that device reads and writes it. Such regions count towards the
// limit of regions, not of bytes.
//
// Thread-safety: thread-safe. Ownership: the registry holds a region until it is withdrawn;
// requests hold it beside. Memory counts towards the limits until the last holder lets go. A region
// may outlive its registry; its registration ends with it.
#ifndef FLASHBIAS_SERVER_REGION_REGISTRY_H_
#define FLASHBIAS_SERVER_REGION_REGISTRY_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "kernels/attention_backend.h"
#include "server/mutex.h"
#include "wire/region_protocol.h"
#include "wire/unique_fd.h"

namespace flashbias::server {

struct RegionLimits {
  int64_t max_bytes = 0;       // of all regions that are made
  int64_t max_peer_bytes = 0;  // of those of one process
  int64_t max_regions = 0;
};

// Regions that exist, withdrawn ones in use included; bytes in whole pages.
struct RegionUsage {
  int64_t regions = 0;
  int64_t bytes = 0;
  int64_t unregistered = 0;    // of `regions`: devices reach them with another copy
  int64_t device_regions = 0;  // opened ones, which are not in `regions`
  int64_t device_bytes = 0;
};

// What regions hold of the limits.
class RegionLedger {
 public:
  explicit RegionLedger(const RegionLimits& limits) : limits_(limits) {}

  // RESOURCE_EXHAUSTED naming the limit, what is held and what was asked for.
  absl::Status Take(pid_t peer, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Return(pid_t peer, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same for a region that is opened.
  absl::Status TakeDevice(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void ReturnDevice(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // One more region, or one less, that could not be registered.
  void CountUnregistered(int change) ABSL_LOCKS_EXCLUDED(mutex_);
  RegionUsage usage() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status CheckCountLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const RegionLimits limits_;
  mutable Mutex mutex_;
  RegionUsage usage_ ABSL_GUARDED_BY(mutex_);
  std::map<pid_t, int64_t> peer_bytes_ ABSL_GUARDED_BY(mutex_);
};

// Gives its memory back when it is destroyed.
class Region {
 public:
  Region(char* data, size_t size, int device) : data_(data), size_(size), device_(device) {}
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  virtual ~Region() = default;

  // Aligned to a page; of a device's memory an address there, aligned to 4 bytes, through which
  // nothing on the host may read or write.
  char* data() const { return data_; }
  size_t size() const { return size_; }
  // Whose memory it is: the place of the backend among the server's; kAnyDevice: the host's.
  int device() const { return device_; }

 private:
  char* const data_;
  const size_t size_;
  const int device_;
};

class RegionRegistry {
 public:
  struct NewRegion {
    uint64_t id = 0;
    wire::UniqueFd fd;  // for the caller; the server's mapping needs it no more
  };

  // The backends that compute must outlive the registry; they share the first one's allocator.
  explicit RegionRegistry(const RegionLimits& limits, std::vector<AttentionBackend*> backends = {});
  RegionRegistry(const RegionRegistry&) = delete;
  RegionRegistry& operator=(const RegionRegistry&) = delete;

  // A region for the process `peer`, filled with zeroes. INVALID_ARGUMENT: `bytes` is 0;
  // RESOURCE_EXHAUSTED: a limit, or the system has no memory or descriptors. Takes about 0.3 ms for
  // each MiB, and what registering takes.
  absl::StatusOr<NewRegion> Make(pid_t peer, uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // A region of `bytes` of the caller's memory on a device; `released` is closed when nobody uses
  // it any more. Returns its id. INVALID_ARGUMENT naming what is wrong: no device opens the handle,
  // the range is empty or not within the allocation; FAILED_PRECONDITION: there is no device;
  // RESOURCE_EXHAUSTED: a limit.
  absl::StatusOr<uint64_t> Open(const wire::OfferedMemory& memory, uint64_t bytes,
                                wire::UniqueFd released) ABSL_LOCKS_EXCLUDED(mutex_);

  // Null: there is none of that id, or it was withdrawn.
  std::shared_ptr<const Region> Find(uint64_t id) const ABSL_LOCKS_EXCLUDED(mutex_);

  // Requests that hold it already go on; no other finds it.
  void Withdraw(uint64_t id) ABSL_LOCKS_EXCLUDED(mutex_);

  RegionUsage usage() const { return ledger_->usage(); }

 private:
  absl::StatusOr<uint64_t> Add(std::shared_ptr<const Region> region) ABSL_LOCKS_EXCLUDED(mutex_);

  const RegionLimits limits_;
  const std::vector<AttentionBackend*> backends_;
  const std::shared_ptr<RegionLedger> ledger_;
  std::atomic<bool> failure_logged_ = false;
  mutable Mutex mutex_;
  std::map<uint64_t, std::shared_ptr<const Region>> regions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_REGION_REGISTRY_H_
