#include "kernels/cuda/runtime_device.h"

#include <cuda.h>

#include <cstdint>
#include <cstring>

namespace flashbias::cuda {
namespace {

static_assert(kSuccess == cudaSuccess && kOutOfMemory == cudaErrorMemoryAllocation &&
                  kNotReady == cudaErrorNotReady,
              "device_api.h repeats the runtime's codes");

cudaEvent_t Native(Event* event) { return reinterpret_cast<cudaEvent_t>(event); }

// Of a call whose failure changes nothing: else it would show at someone else's next call.
void Forget(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
}

// Makes a device current on this thread for a while.
class CurrentDevice {
 public:
  explicit CurrentDevice(int ordinal) {
    Forget(cudaGetDevice(&before_));
    error_ = cudaSetDevice(ordinal);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() { Forget(cudaSetDevice(before_)); }

  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  cudaError_t error_ = cudaSuccess;
};

static_assert(kIpcHandleBytes == sizeof(cudaIpcMemHandle_t),
              "device_api.h repeats the handle's size");

// How many bytes there are from `memory` to the end of its allocation. The runtime does not tell,
// and the driver is not linked: the same binary runs where there is none.
cudaError_t BytesFrom(const void* memory, size_t* bytes) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &function,
                                                             12000, cudaEnableDefault, &result);
  if (error != cudaSuccess) return error;
  if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const auto get_range = reinterpret_cast<decltype(&cuMemGetAddressRange)>(function);
  const auto address = reinterpret_cast<uintptr_t>(memory);
  CUdeviceptr begin = 0;
  size_t size = 0;
  if (get_range(&begin, &size, address) != CUDA_SUCCESS) return cudaErrorInvalidValue;
  *bytes = begin + size - address;
  return cudaSuccess;
}

}  // namespace

ErrorCode RuntimeDevice::Use() { return cudaSetDevice(ordinal_); }

ErrorCode RuntimeDevice::FreeMemory(size_t* bytes) {
  size_t total = 0;
  return cudaMemGetInfo(bytes, &total);
}

ErrorCode RuntimeDevice::AllocateDevice(size_t bytes, void** memory) {
  return cudaMalloc(memory, bytes);
}

void RuntimeDevice::FreeDevice(void* memory) { Forget(cudaFree(memory)); }

ErrorCode RuntimeDevice::AllocatePinned(size_t bytes, void** memory) {
  const CurrentDevice current(ordinal_);
  cudaError_t error = current.error();
  if (error == cudaSuccess) error = cudaHostAlloc(memory, bytes, cudaHostAllocPortable);
  Forget(error);
  return error;
}

void RuntimeDevice::FreePinned(void* memory) {
  const CurrentDevice current(ordinal_);
  Forget(current.error());
  Forget(cudaFreeHost(memory));
}

ErrorCode RuntimeDevice::RegisterHost(void* memory, size_t bytes) {
  const CurrentDevice current(ordinal_);
  cudaError_t error = current.error();
  if (error == cudaSuccess) error = cudaHostRegister(memory, bytes, cudaHostRegisterPortable);
  Forget(error);
  return error;
}

void RuntimeDevice::UnregisterHost(void* memory) {
  const CurrentDevice current(ordinal_);
  Forget(current.error());
  Forget(cudaHostUnregister(memory));
}

ErrorCode RuntimeDevice::OpenIpc(const void* handle, IpcMapping* mapping) {
  const CurrentDevice current(ordinal_);
  cudaError_t error = current.error();
  cudaIpcMemHandle_t native;
  std::memcpy(&native, handle, sizeof(native));
  if (error == cudaSuccess) {
    error = cudaIpcOpenMemHandle(&mapping->memory, native, cudaIpcMemLazyEnablePeerAccess);
  }
  if (error != cudaSuccess) {
    Forget(error);
    return error;
  }
  cudaPointerAttributes attributes;
  error = cudaPointerGetAttributes(&attributes, mapping->memory);
  if (error == cudaSuccess) error = BytesFrom(mapping->memory, &mapping->bytes);
  mapping->on_this_device = error == cudaSuccess && attributes.device == ordinal_;
  if (error != cudaSuccess) {
    Forget(error);
    Forget(cudaIpcCloseMemHandle(mapping->memory));
  }
  return error;
}

void RuntimeDevice::CloseIpc(void* memory) {
  const CurrentDevice current(ordinal_);
  Forget(current.error());
  Forget(cudaIpcCloseMemHandle(memory));
}

ErrorCode RuntimeDevice::CreateStream(Stream** stream) {
  cudaStream_t native = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking);
  *stream = reinterpret_cast<Stream*>(native);
  return error;
}

void RuntimeDevice::DestroyStream(Stream* stream) {
  Forget(cudaStreamDestroy(flashbias::cuda::Native(stream)));
}

ErrorCode RuntimeDevice::CreateEvent(Event** event) {
  cudaEvent_t native = nullptr;
  const cudaError_t error = cudaEventCreateWithFlags(&native, cudaEventBlockingSync);
  *event = reinterpret_cast<Event*>(native);
  return error;
}

void RuntimeDevice::DestroyEvent(Event* event) { Forget(cudaEventDestroy(Native(event))); }

ErrorCode RuntimeDevice::Copy(void* to, const void* from, size_t bytes, CopyKind kind,
                              Stream* stream) {
  return cudaMemcpyAsync(
      to, from, bytes,
      kind == CopyKind::kHostToDevice ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost,
      flashbias::cuda::Native(stream));
}

ErrorCode RuntimeDevice::Record(Event* event, Stream* stream) {
  return cudaEventRecord(Native(event), flashbias::cuda::Native(stream));
}

ErrorCode RuntimeDevice::StreamWait(Stream* stream, Event* event) {
  return cudaStreamWaitEvent(flashbias::cuda::Native(stream), Native(event), 0);
}

ErrorCode RuntimeDevice::Query(Event* event) {
  const cudaError_t error = cudaEventQuery(Native(event));
  if (error == cudaErrorNotReady) cudaGetLastError();  // no error of anyone's
  return error;
}

ErrorCode RuntimeDevice::Wait(Event* event) { return cudaEventSynchronize(Native(event)); }

ErrorCode RuntimeDevice::Wait(Stream* stream) {
  return cudaStreamSynchronize(flashbias::cuda::Native(stream));
}

ErrorCode RuntimeDevice::Elapsed(Event* from, Event* to, float* milliseconds) {
  return cudaEventElapsedTime(milliseconds, Native(from), Native(to));
}

ErrorCode RuntimeDevice::StickyError() {
  cudaGetLastError();
  const cudaError_t stays = cudaPeekAtLastError();
  if (stays != cudaSuccess) return stays;
  // A call that does nothing but needs a context that works.
  size_t free_bytes = 0;
  size_t total = 0;
  const cudaError_t error = cudaMemGetInfo(&free_bytes, &total);
  cudaGetLastError();
  return error;
}

std::string RuntimeDevice::ErrorName(ErrorCode code) const {
  return cudaGetErrorName(static_cast<cudaError_t>(code));
}

std::string RuntimeDevice::ErrorText(ErrorCode code) const {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

}  // namespace flashbias::cuda
