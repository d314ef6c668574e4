// Which addresses lie in regions: of this process's memory, or of a device that it uses (CUDA gives
// both from one range).
//
// Thread-safety: thread-safe. Ownership: shared by a client and its regions.
#ifndef FLASHBIAS_CLIENT_REGION_MAP_H_
#define FLASHBIAS_CLIENT_REGION_MAP_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "wire/tensor_field.h"

namespace flashbias::client {

class RegionMap {
 public:
  // False, and nothing is added: some of it lies in a region already.
  bool Add(const void* data, size_t size, uint64_t id, bool on_device = false)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Remove(const void* data) ABSL_LOCKS_EXCLUDED(mutex_);

  // nullopt: not all of the `bytes` from `data` on lie in one region, or there are none.
  std::optional<wire::RegionPlace> Find(const void* data, size_t bytes) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether any of the bytes lies in a region on a device, where this process cannot read it.
  bool TouchesDevice(const void* data, size_t bytes) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Range {
    size_t size;
    uint64_t id;
    bool on_device;
  };
  mutable absl::Mutex mutex_;
  std::map<uintptr_t, Range> ranges_ ABSL_GUARDED_BY(mutex_);  // by address
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_REGION_MAP_H_
