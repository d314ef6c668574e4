// Device and pinned memory with one owner.
#ifndef FLASHBIAS_TESTS_BENCH_CUDA_MEMORY_H_
#define FLASHBIAS_TESTS_BENCH_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "tests/bench/cuda_check.h"

namespace flashbias::bench {

struct DeviceFree {
  void operator()(void* data) const { FLASHBIAS_CHECK_CUDA(cudaFree(data)); }
};
struct PinnedFree {
  void operator()(void* data) const { FLASHBIAS_CHECK_CUDA(cudaFreeHost(data)); }
};
using DeviceMemory = std::unique_ptr<void, DeviceFree>;
using PinnedMemory = std::unique_ptr<void, PinnedFree>;

// Null for no bytes.
inline DeviceMemory AllocateDevice(size_t bytes) {
  void* data = nullptr;
  if (bytes > 0) FLASHBIAS_CHECK_CUDA(cudaMalloc(&data, bytes));
  return DeviceMemory(data);
}

// Null for no bytes.
inline PinnedMemory AllocatePinned(size_t bytes) {
  void* data = nullptr;
  if (bytes > 0) FLASHBIAS_CHECK_CUDA(cudaMallocHost(&data, bytes));
  return PinnedMemory(data);
}

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_CUDA_MEMORY_H_
