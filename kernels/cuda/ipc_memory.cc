#include "kernels/cuda/ipc_memory.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flashbias::cuda {

class IpcMemoryTable::Opened final : public DeviceMemory {
 public:
  Opened(char* data, size_t size, std::shared_ptr<IpcMemoryTable> table, const Handle& handle)
      : DeviceMemory(data, size), table_(std::move(table)), handle_(handle) {}
  ~Opened() override { table_->Close(handle_); }

 private:
  const std::shared_ptr<IpcMemoryTable> table_;
  const Handle handle_;
};

IpcMemoryTable::IpcMemoryTable(std::shared_ptr<DeviceApi> device, std::string label)
    : device_(std::move(device)), label_(std::move(label)) {}

absl::StatusOr<std::unique_ptr<DeviceMemory>> IpcMemoryTable::Open(
    absl::Span<const uint8_t> ipc_handle, uint64_t offset, uint64_t bytes) {
  if (ipc_handle.size() != kIpcHandleBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("ipc_handle has ", ipc_handle.size(), " bytes; accepted: ", kIpcHandleBytes));
  }
  Handle handle;
  std::copy(ipc_handle.begin(), ipc_handle.end(), handle.begin());
  absl::MutexLock lock(&mutex_);
  auto allocation = allocations_.find(handle);
  if (allocation == allocations_.end()) {
    IpcMapping mapping;
    const ErrorCode error = device_->OpenIpc(handle.data(), &mapping);
    if (error != kSuccess) {
      return absl::InvalidArgumentError(absl::StrCat(
          "ipc_handle: CUDA device ", label_, " cannot open it (", device_->ErrorName(error), ", ",
          device_->ErrorText(error),
          "); accepted: that of memory which a process other than the server got from cudaMalloc "
          "and holds"));
    }
    allocation = allocations_.emplace(handle, Allocation{.mapping = mapping}).first;
  }
  const IpcMapping& mapping = allocation->second.mapping;
  absl::Status status;
  if (!mapping.on_this_device) {
    status =
        absl::NotFoundError(absl::StrCat("ipc_handle: its memory is not on CUDA device ", label_));
  } else if (offset > mapping.bytes || bytes > mapping.bytes - offset) {
    status =
        absl::OutOfRangeError(absl::StrCat("device memory of ", bytes, " bytes from byte ", offset,
                                           " of its allocation on; accepted: ranges "
                                           "within its ",
                                           mapping.bytes, " bytes"));
  }
  if (!status.ok()) {
    if (allocation->second.users == 0) CloseLocked(allocation);
    return status;
  }
  ++allocation->second.users;
  return std::make_unique<Opened>(static_cast<char*>(mapping.memory) + offset, bytes,
                                  shared_from_this(), handle);
}

void IpcMemoryTable::Close(const Handle& handle) {
  absl::MutexLock lock(&mutex_);
  const auto allocation = allocations_.find(handle);
  if (--allocation->second.users == 0) CloseLocked(allocation);
}

void IpcMemoryTable::CloseLocked(std::map<Handle, Allocation>::iterator allocation) {
  device_->CloseIpc(allocation->second.mapping.memory);
  allocations_.erase(allocation);
}

}  // namespace flashbias::cuda
