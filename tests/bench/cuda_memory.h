// Device and pinned memory with one owner.
#ifndef FLASHBIAS_TESTS_BENCH_CUDA_MEMORY_H_
#define FLASHBIAS_TESTS_BENCH_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <vector>

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

inline DeviceMemory CopyToDevice(const std::vector<char>& host) {
  DeviceMemory device = AllocateDevice(host.size());
  if (!host.empty()) {
    FLASHBIAS_CHECK_CUDA(
        cudaMemcpy(device.get(), host.data(), host.size(), cudaMemcpyHostToDevice));
    // A copy from pageable memory can return before it is done, and other streams do not wait for
    // it.
    FLASHBIAS_CHECK_CUDA(cudaStreamSynchronize(cudaStreamLegacy));
  }
  return device;
}

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_CUDA_MEMORY_H_
