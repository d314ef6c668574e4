// Memory of this process on a GPU of the server's host that the server uses where it lies: tensors
// in it are neither sent nor copied.
//
//   void* data;  // float16 q, k, v and room for o, one after the other
//   cudaMalloc(&data, bytes);
//   cudaIpcMemHandle_t handle;
//   cudaIpcGetMemHandle(&handle, data);
//   auto region = (*client)->RegisterDeviceMemory(
//       {.data = data, .bytes = bytes, .ipc_handle = absl::MakeConstSpan(
//            reinterpret_cast<const uint8_t*>(&handle), sizeof(handle))});
//   (*client)->Attend({.q = {..., .data = data}, ...}, {.result = {.o = {o_at, n}}});
//
// A handle stands for a whole allocation. Where `data` lies within one (a framework's allocator
// cuts its blocks into pieces), `offset` says at which byte: cuMemGetAddressRange gives where it
// begins.
//
// Every tensor and result buffer that lies wholly in a region of the client's is used where it
// lies; that is seen from its address. Others may lie anywhere in host memory. All device memory of
// a call must be that of one device, and what lies in no region must fit max_message_bytes: such
// calls are not streamed. Slopes are always sent, from host memory.
//
// Order: nothing of this process's streams is waited for. What writes tensors must have finished
// before the call begins (cudaStreamSynchronize); when it returns OK, results are written. After a
// call that failed (a deadline, a cancellation) the server may go on reading and writing until it
// is done with the request.
//
// Thread-safety: constant, but for Release. Ownership: the memory stays the caller's and must not
// be freed while the region lives. The destructor takes it back from the server, which closes it
// once calls in flight have ended: it waits for that. Release says whether it did within a time of
// the caller's; until it has, the memory must not be freed. When this process ends, however that
// comes about, the server closes it too. A region may outlive its client.
#ifndef FLASHBIAS_CLIENT_DEVICE_REGION_H_
#define FLASHBIAS_CLIENT_DEVICE_REGION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace flashbias::client {

class RegionMap;

// What of this process's device memory is to be a region.
struct DeviceMemoryView {
  void* data = nullptr;  // on the device
  size_t bytes = 0;      // at least 1
  // The 64 bytes of the cudaIpcMemHandle_t of the allocation that it lies in.
  absl::Span<const uint8_t> ipc_handle = {};
  uint64_t offset = 0;  // of `data` in that allocation, a multiple of 4
  // The 16 bytes of cudaDeviceProp::uuid of the device that it is on. Empty: the first of the
  // server's devices that reaches it computes there; where the server has several, that may be
  // another one, through the link between them.
  absl::Span<const uint8_t> device_uuid = {};
};

class DeviceRegion {
 public:
  // AttentionClient::RegisterDeviceMemory calls this, with the target's path and its own map.
  static absl::StatusOr<std::unique_ptr<DeviceRegion>> Create(const std::string& unix_path,
                                                              const DeviceMemoryView& memory,
                                                              absl::Duration timeout,
                                                              std::shared_ptr<RegionMap> map);
  // Waits as long as calls in flight take; the death of the server ends that too.
  ~DeviceRegion();
  DeviceRegion(const DeviceRegion&) = delete;
  DeviceRegion& operator=(const DeviceRegion&) = delete;

  // Takes the memory back; no call finds it from now on. DEADLINE_EXCEEDED: the server still uses
  // it; may be asked again.
  absl::Status Release(absl::Duration timeout);

  void* data() const { return data_; }
  size_t size() const { return size_; }
  uint64_t id() const { return id_; }  // as the wire has it

 private:
  DeviceRegion(int connection, void* data, size_t size, uint64_t id,
               std::shared_ptr<RegionMap> map);

  const int connection_;  // a descriptor; the region lives as long as it is open
  void* const data_;
  const size_t size_;
  const uint64_t id_;
  const std::shared_ptr<RegionMap> map_;
  bool released_ = false;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_DEVICE_REGION_H_
