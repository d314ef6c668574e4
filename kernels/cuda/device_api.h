// The few calls of the CUDA runtime that running attention takes, for one device.
//
// An interface so that everything above it (slots, arenas, the pinned pool, what happens after an
// error) is tested without a GPU, and built without a CUDA toolkit. runtime_device.h has the real
// one.
//
// Thread-safety: all methods from any thread. Ownership: what was made here is given back here,
// before the api goes.
#ifndef FLASHBIAS_KERNELS_CUDA_DEVICE_API_H_
#define FLASHBIAS_KERNELS_CUDA_DEVICE_API_H_

#include <cstddef>
#include <string>

namespace flashbias::cuda {

// A cudaError_t.
using ErrorCode = int;
inline constexpr ErrorCode kSuccess = 0;
inline constexpr ErrorCode kOutOfMemory = 2;  // cudaErrorMemoryAllocation
inline constexpr ErrorCode kNotReady = 600;   // cudaErrorNotReady

// Opaque: the CUDA runtime's objects, or a test's.
struct Stream;
struct Event;

enum class CopyKind { kHostToDevice, kDeviceToHost };

// What OpenIpc has opened.
struct IpcMapping {
  void* memory = nullptr;       // where the allocation begins, for CloseIpc
  size_t bytes = 0;             // from there to its end
  bool on_this_device = false;  // else on another one, which this one merely reaches
};

// Of a cudaIpcMemHandle_t.
inline constexpr size_t kIpcHandleBytes = 64;

class DeviceApi {
 public:
  virtual ~DeviceApi() = default;

  // Makes the device current on the calling thread. Every other call but the names' and those for
  // pinned memory needs that.
  virtual ErrorCode Use() = 0;
  virtual ErrorCode FreeMemory(size_t* bytes) = 0;

  // Aligned to 256 bytes. Freeing may wait for everything that the device does.
  virtual ErrorCode AllocateDevice(size_t bytes, void** memory) = 0;
  virtual void FreeDevice(void* memory) = 0;
  // Page-locked host memory that every device reaches, aligned to 256 bytes. Both may wait for
  // everything that the device does, and leave the thread's current device as it is.
  virtual ErrorCode AllocatePinned(size_t bytes, void** memory) = 0;
  virtual void FreePinned(void* memory) = 0;
  // Page-locks memory of someone else's, so that every device reaches it as if it came from
  // AllocatePinned, and ends that. As these two, they may wait and leave the current device alone.
  virtual ErrorCode RegisterHost(void* memory, size_t bytes) = 0;
  virtual void UnregisterHost(void* memory) = 0;
  // Opens an allocation that another process exported, kIpcHandleBytes at `handle`, and closes it.
  // Nothing is open after an error. Both may wait and leave the current device alone. No handle is
  // to be opened that is open.
  virtual ErrorCode OpenIpc(const void* handle, IpcMapping* mapping) = 0;
  virtual void CloseIpc(void* memory) = 0;

  // A stream that waits for no other; events that carry a time and can be waited for asleep.
  virtual ErrorCode CreateStream(Stream** stream) = 0;
  virtual void DestroyStream(Stream* stream) = 0;
  virtual ErrorCode CreateEvent(Event** event) = 0;
  virtual void DestroyEvent(Event* event) = 0;

  // Asynchronous where the host memory is pinned; from and to other memory it may wait.
  virtual ErrorCode Copy(void* to, const void* from, size_t bytes, CopyKind kind,
                         Stream* stream) = 0;
  virtual ErrorCode Record(Event* event, Stream* stream) = 0;
  // What is enqueued on `stream` from now on waits, on the device, for what `event` was last
  // recorded behind; for nothing where it never was.
  virtual ErrorCode StreamWait(Stream* stream, Event* event) = 0;
  virtual ErrorCode Query(Event* event) = 0;  // kNotReady: not yet
  virtual ErrorCode Wait(Event* event) = 0;   // sleeps
  virtual ErrorCode Wait(Stream* stream) = 0;
  virtual ErrorCode Elapsed(Event* from, Event* to, float* milliseconds) = 0;

  // Forgets an error that a call has returned, and asks whether the device recovers from it:
  // kSuccess, or the error that every call will return from now on ("sticky").
  virtual ErrorCode StickyError() = 0;

  virtual std::string ErrorName(ErrorCode code) const = 0;  // "cudaErrorIllegalAddress"
  virtual std::string ErrorText(ErrorCode code) const = 0;  // "an illegal memory access was ..."
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_DEVICE_API_H_
