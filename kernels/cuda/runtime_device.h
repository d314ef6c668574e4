// DeviceApi over the CUDA runtime.
//
// Thread-safety: as DeviceApi.
#ifndef FLASHBIAS_KERNELS_CUDA_RUNTIME_DEVICE_H_
#define FLASHBIAS_KERNELS_CUDA_RUNTIME_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "kernels/cuda/device_api.h"

namespace flashbias::cuda {

inline cudaStream_t Native(Stream* stream) { return reinterpret_cast<cudaStream_t>(stream); }

class RuntimeDevice final : public DeviceApi {
 public:
  explicit RuntimeDevice(int ordinal) : ordinal_(ordinal) {}

  ErrorCode Use() override;
  ErrorCode FreeMemory(size_t* bytes) override;
  ErrorCode AllocateDevice(size_t bytes, void** memory) override;
  void FreeDevice(void* memory) override;
  ErrorCode AllocatePinned(size_t bytes, void** memory) override;
  void FreePinned(void* memory) override;
  ErrorCode RegisterHost(void* memory, size_t bytes) override;
  void UnregisterHost(void* memory) override;
  ErrorCode OpenIpc(const void* handle, IpcMapping* mapping) override;
  void CloseIpc(void* memory) override;
  ErrorCode CreateStream(Stream** stream) override;
  void DestroyStream(Stream* stream) override;
  ErrorCode CreateEvent(Event** event) override;
  void DestroyEvent(Event* event) override;
  ErrorCode Copy(void* to, const void* from, size_t bytes, CopyKind kind, Stream* stream) override;
  ErrorCode Record(Event* event, Stream* stream) override;
  ErrorCode StreamWait(Stream* stream, Event* event) override;
  ErrorCode Query(Event* event) override;
  ErrorCode Wait(Event* event) override;
  ErrorCode Wait(Stream* stream) override;
  ErrorCode Elapsed(Event* from, Event* to, float* milliseconds) override;
  ErrorCode StickyError() override;
  std::string ErrorName(ErrorCode code) const override;
  std::string ErrorText(ErrorCode code) const override;

 private:
  const int ordinal_;
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_RUNTIME_DEVICE_H_
