// Memory on a backend's device that another process allocated and the backend has opened
// (AttentionBackend::OpenDeviceMemory).
//
// Thread-safety: constant. Ownership: closes what it stands for when it is destroyed, from any
// thread, which may wait for what the device does; it may outlive its backend. The process that
// allocated the memory must not free it before; where that process ends, the memory stays.
#ifndef FLASHBIAS_KERNELS_DEVICE_MEMORY_H_
#define FLASHBIAS_KERNELS_DEVICE_MEMORY_H_

#include <cstddef>

namespace flashbias {

class DeviceMemory {
 public:
  DeviceMemory(char* data, size_t size) : data_(data), size_(size) {}
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  virtual ~DeviceMemory() = default;

  // An address on the device: nothing on the host may be read or written through it.
  char* data() const { return data_; }
  size_t size() const { return size_; }  // bytes

 private:
  char* const data_;
  const size_t size_;
};

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_DEVICE_MEMORY_H_
