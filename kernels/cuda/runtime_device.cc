#include "kernels/cuda/runtime_device.h"

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
