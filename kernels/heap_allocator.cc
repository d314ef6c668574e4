#include "kernels/heap_allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <new>

#include "absl/strings/str_cat.h"

namespace flashbias {
namespace {

// No machine has more; sizes below it round up without overflow.
constexpr size_t kMaxBytes = size_t{1} << 48;

// Eight sizes for each power of two, so that blocks of like size are interchangeable and at most an
// eighth is wasted.
size_t RoundedUp(size_t bytes) {
  const size_t step = std::max<size_t>(std::bit_floor(bytes) / 8, 1);
  return (bytes + step - 1) / step * step;
}

// Null where there is no memory.
void* Map(size_t bytes) {
  void* const data =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  madvise(data, bytes, MADV_HUGEPAGE);  // a wish: fewer faults where it is granted
  return data;
}

}  // namespace

HeapAllocator::~HeapAllocator() {
  for (const auto& [bytes, blocks] : idle_) {
    for (void* const data : blocks) munmap(data, bytes);
  }
}

absl::StatusOr<HostBlock> HeapAllocator::Allocate(size_t bytes) {
  void* data = nullptr;
  if (bytes < kKeptFrom) {
    data = ::operator new (std::max<size_t>(bytes, 1), std::align_val_t{kAlignment}, std::nothrow);
  } else if (bytes <= kMaxBytes) {
    const size_t rounded = RoundedUp(bytes);
    {
      absl::MutexLock lock(&mutex_);
      const auto it = idle_.find(rounded);
      if (it != idle_.end() && !it->second.empty()) {
        data = it->second.back();
        it->second.pop_back();
        idle_bytes_ -= rounded;
      }
    }
    if (data == nullptr) data = Map(rounded);
  }
  if (data == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes"));
  }
  return MakeBlock(data, bytes);
}

void HeapAllocator::Free(void* data, size_t bytes) {
  if (bytes < kKeptFrom) {
    ::operator delete (data, std::align_val_t{kAlignment});
    return;
  }
  const size_t rounded = RoundedUp(bytes);
  {
    absl::MutexLock lock(&mutex_);
    if (rounded <= kMaxIdleBytes - idle_bytes_) {
      idle_[rounded].push_back(data);
      idle_bytes_ += rounded;
      return;
    }
  }
  munmap(data, rounded);
}

size_t HeapAllocator::idle_bytes() const {
  absl::MutexLock lock(&mutex_);
  return idle_bytes_;
}

}  // namespace flashbias
