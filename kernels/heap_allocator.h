// Host blocks from the heap: what a backend without a device of its own uses.
#ifndef FLASHBIAS_KERNELS_HEAP_ALLOCATOR_H_
#define FLASHBIAS_KERNELS_HEAP_ALLOCATOR_H_

#include "kernels/host_memory.h"

namespace flashbias {

class HeapAllocator : public HostAllocator {
 public:
  absl::StatusOr<HostBlock> Allocate(size_t bytes) override;

 private:
  void Free(void* data, size_t bytes) override;
};

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_HEAP_ALLOCATOR_H_
