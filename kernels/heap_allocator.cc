#include "kernels/heap_allocator.h"

#include <algorithm>
#include <new>

#include "absl/strings/str_cat.h"

namespace flashbias {

absl::StatusOr<HostBlock> HeapAllocator::Allocate(size_t bytes) {
  void* const data =
      ::operator new(std::max<size_t>(bytes, 1), std::align_val_t{kAlignment}, std::nothrow);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes"));
  }
  return MakeBlock(data, bytes);
}

void HeapAllocator::Free(void* data, size_t /*bytes*/) {
  ::operator delete(data, std::align_val_t{kAlignment});
}

}  // namespace flashbias
