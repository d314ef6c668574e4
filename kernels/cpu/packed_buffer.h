// Growing memory for packed tiles, in huge pages where the system gives them.
//
// Not thread-safe. Contents are not kept when it grows.
#ifndef FLASHBIAS_KERNELS_CPU_PACKED_BUFFER_H_
#define FLASHBIAS_KERNELS_CPU_PACKED_BUFFER_H_

#include <cstddef>
#include <cstdlib>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace flashbias::cpu {

class PackedBuffer {
 public:
  // Memory for `count` floats (0 is legal), uninitialised, aligned to 2 MiB; valid until the next
  // call. Null only when there is no memory.
  float* Reserve(size_t count) {
    const size_t bytes = (count * sizeof(float) + kHugePage) / kHugePage * kHugePage;
    if (bytes <= bytes_) return memory_.get();
    memory_.reset();
    bytes_ = 0;
    memory_.reset(static_cast<float*>(std::aligned_alloc(kHugePage, bytes)));
    if (memory_ == nullptr) return nullptr;
    bytes_ = bytes;
#if defined(__linux__)
    // A wish, not a need: with small pages the kernels are slower, not wrong.
    (void)madvise(memory_.get(), bytes, MADV_HUGEPAGE);
#endif
    return memory_.get();
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float[], Free> memory_;
  size_t bytes_ = 0;
};

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_PACKED_BUFFER_H_
