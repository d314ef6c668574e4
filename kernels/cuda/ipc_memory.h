// Memory of other processes that is open on one device.
//
// An allocation is opened once however often it is asked for, and closed when nobody uses it any
// more: opening a handle that is open is an error to some drivers.
//
// Thread-safety: thread-safe. Ownership: to be held by a shared_ptr, which the results share: they
// may outlive whoever made the table.
#ifndef FLASHBIAS_KERNELS_CUDA_IPC_MEMORY_H_
#define FLASHBIAS_KERNELS_CUDA_IPC_MEMORY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "kernels/cuda/device_api.h"
#include "kernels/device_memory.h"

namespace flashbias::cuda {

class IpcMemoryTable : public std::enable_shared_from_this<IpcMemoryTable> {
 public:
  // `label` names the device in messages.
  IpcMemoryTable(std::shared_ptr<DeviceApi> device, std::string label);
  IpcMemoryTable(const IpcMemoryTable&) = delete;
  IpcMemoryTable& operator=(const IpcMemoryTable&) = delete;

  // As AttentionBackend::OpenDeviceMemory.
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Open(absl::Span<const uint8_t> ipc_handle,
                                                     uint64_t offset, uint64_t bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Handle = std::array<uint8_t, kIpcHandleBytes>;
  class Opened;
  struct Allocation {
    IpcMapping mapping;
    int users = 0;
  };

  void Close(const Handle& handle) ABSL_LOCKS_EXCLUDED(mutex_);
  void CloseLocked(std::map<Handle, Allocation>::iterator allocation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Constant after construction.
  const std::shared_ptr<DeviceApi> device_;
  const std::string label_;

  // Held while the device opens and closes, so that nothing is opened while it is being closed. No
  // run waits for it.
  absl::Mutex mutex_;
  std::map<Handle, Allocation> allocations_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_IPC_MEMORY_H_
