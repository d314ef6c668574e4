// Host blocks from ordinary memory: what a backend without a device of its own uses.
//
// Large blocks are kept when they come back and given out again: memory that is new to the process
// costs a page fault for every 4 KiB, more than copying a tensor into it. At most kMaxIdleBytes lie
// idle.
#ifndef FLASHBIAS_KERNELS_HEAP_ALLOCATOR_H_
#define FLASHBIAS_KERNELS_HEAP_ALLOCATOR_H_

#include <cstddef>
#include <map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kernels/host_memory.h"

namespace flashbias {

class HeapAllocator : public HostAllocator {
 public:
  // Blocks of at least this size are kept.
  static constexpr size_t kKeptFrom = size_t{1} << 20;
  static constexpr size_t kMaxIdleBytes = size_t{512} << 20;

  HeapAllocator() = default;
  HeapAllocator(const HeapAllocator&) = delete;
  HeapAllocator& operator=(const HeapAllocator&) = delete;
  // REQUIRES: all blocks came back.
  ~HeapAllocator() override;

  absl::StatusOr<HostBlock> Allocate(size_t bytes) override ABSL_LOCKS_EXCLUDED(mutex_);

  size_t idle_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Free(void* data, size_t bytes) override ABSL_LOCKS_EXCLUDED(mutex_);

  mutable absl::Mutex mutex_;
  std::map<size_t, std::vector<void*>> idle_ ABSL_GUARDED_BY(mutex_);  // by rounded size
  size_t idle_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_HEAP_ALLOCATOR_H_
