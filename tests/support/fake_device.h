// A CUDA device made of threads and the heap, and a planner whose kernels are the fp64 reference:
// what runs batches on a device, tested without one.
//
// Every stream is a thread that does its operations in order, so copies and kernels really happen
// later and beside each other: AddressSanitizer and ThreadSanitizer see memory that is given back
// too early. Copies from and to memory that is neither pinned nor registered wait, as the CUDA
// runtime's may; one that crosses the border of registered memory fails, as there. A test can hold
// the kernels, let calls fail, break the device, and see what was left behind.
//
// Memory of "another process" (ForeignMemory) can be opened by its handle: it is mapped a second
// time, and only while a kernel runs, so that the host cannot touch it unseen.
//
// Thread-safe. The device must outlive what was made with it.
#ifndef FLASHBIAS_TESTS_SUPPORT_FAKE_DEVICE_H_
#define FLASHBIAS_TESTS_SUPPORT_FAKE_DEVICE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "kernels/cuda/device_api.h"
#include "kernels/cuda/launch_planner.h"

namespace flashbias::support {

// Memory on the device as the process sees it that allocated it.
class ForeignMemory {
 public:
  // `handle_byte` tells its handle from others'.
  ForeignMemory(size_t bytes, uint8_t handle_byte);
  ForeignMemory(const ForeignMemory&) = delete;
  ForeignMemory& operator=(const ForeignMemory&) = delete;
  ~ForeignMemory();

  char* data() const { return data_; }
  size_t size() const { return bytes_; }
  absl::Span<const uint8_t> handle() const { return handle_; }

 private:
  friend class FakeDevice;

  const size_t bytes_;
  int fd_ = -1;
  char* data_ = nullptr;
  std::array<uint8_t, cuda::kIpcHandleBytes> handle_;
};

class FakeDevice final : public cuda::DeviceApi {
 public:
  // What a test can let fail. kKernel: on the device, after the launch was accepted.
  enum class Call {
    kUse,
    kAllocateDevice,
    kAllocatePinned,
    kRegisterHost,
    kOpenIpc,
    kCopy,
    kRecord,
    kStreamWait,
    kLaunch,
    kKernel
  };

  explicit FakeDevice(size_t memory_bytes = size_t{1} << 30) : memory_bytes_(memory_bytes) {}
  FakeDevice(const FakeDevice&) = delete;
  FakeDevice& operator=(const FakeDevice&) = delete;
  ~FakeDevice() override;

  // The call after `skip` more of its kind returns `code`, once; where `sticky`, every call from
  // then on does.
  void FailNext(Call call, cuda::ErrorCode code, bool sticky, int skip = 0);
  // The same of the calls of this thread alone, once: those of others are not counted.
  void FailNextHere(Call call, cuda::ErrorCode code, int skip);
  // From now on the memory can be opened here, as this device's or as another one's. It must stay.
  void Import(const ForeignMemory& memory, bool on_this_device = true);
  // Openings by OpenIpc that were not closed, and all there ever were.
  int open_ipc() const;
  int opened_ipc() const;

  // Kernels, or uploads, wait until they are released.
  void HoldKernels();
  void ReleaseKernels();
  void HoldUploads();
  void ReleaseUploads();

  // What has happened on the streams, in order: "upload", "kernel", "download", each with the
  // stream's number: "kernel 0".
  std::vector<std::string> history() const;
  // Whether so many entries of history begin with `what` within ten seconds.
  bool WaitForHistory(const std::string& what, size_t count) const;
  // Allocations, registrations, openings, streams and events that were not given back.
  int live_objects() const;
  // AllocatePinned and FreePinned, AllocateDevice and FreeDevice so far.
  int pinned_calls() const;
  int device_calls() const;
  size_t device_bytes() const;
  size_t pinned_bytes() const;
  size_t registered_bytes() const;

  cuda::ErrorCode Use() override;
  cuda::ErrorCode FreeMemory(size_t* bytes) override;
  cuda::ErrorCode AllocateDevice(size_t bytes, void** memory) override;
  void FreeDevice(void* memory) override;
  cuda::ErrorCode AllocatePinned(size_t bytes, void** memory) override;
  void FreePinned(void* memory) override;
  cuda::ErrorCode RegisterHost(void* memory, size_t bytes) override;
  void UnregisterHost(void* memory) override;
  // As some drivers', refuses a handle that is open.
  cuda::ErrorCode OpenIpc(const void* handle, cuda::IpcMapping* mapping) override;
  void CloseIpc(void* memory) override;
  cuda::ErrorCode CreateStream(cuda::Stream** stream) override;
  void DestroyStream(cuda::Stream* stream) override;
  cuda::ErrorCode CreateEvent(cuda::Event** event) override;
  void DestroyEvent(cuda::Event* event) override;
  cuda::ErrorCode Copy(void* to, const void* from, size_t bytes, cuda::CopyKind kind,
                       cuda::Stream* stream) override;
  cuda::ErrorCode Record(cuda::Event* event, cuda::Stream* stream) override;
  cuda::ErrorCode StreamWait(cuda::Stream* stream, cuda::Event* event) override;
  cuda::ErrorCode Query(cuda::Event* event) override;
  cuda::ErrorCode Wait(cuda::Event* event) override;
  cuda::ErrorCode Wait(cuda::Stream* stream) override;
  cuda::ErrorCode Elapsed(cuda::Event* from, cuda::Event* to, float* milliseconds) override;
  cuda::ErrorCode StickyError() override;
  std::string ErrorName(cuda::ErrorCode code) const override;
  std::string ErrorText(cuda::ErrorCode code) const override;

  // For the planner below: runs `kernel` on the stream.
  cuda::ErrorCode Launch(std::function<void()> kernel, cuda::Stream* stream);

 private:
  struct FakeStream;
  struct FakeEvent;
  struct Injection {
    cuda::ErrorCode code;
    bool sticky;
    int skip;
    std::thread::id only = {};  // none: any thread
  };

  // What the call has to return at once; kSuccess: go on.
  cuda::ErrorCode BeginLocked(Call call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  cuda::ErrorCode AllocateLocked(size_t bytes, std::map<uintptr_t, size_t>& live, void** memory)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Push(FakeStream* stream, std::function<void()> operation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StreamLoop(FakeStream* stream);
  // Before and after a kernel: opened memory is there while one runs.
  void KernelRuns(int change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t memory_bytes_;

  mutable absl::Mutex mutex_;
  bool kernels_held_ ABSL_GUARDED_BY(mutex_) = false;
  bool uploads_held_ ABSL_GUARDED_BY(mutex_) = false;
  cuda::ErrorCode dead_ ABSL_GUARDED_BY(mutex_) = cuda::kSuccess;
  std::map<Call, std::vector<Injection>> injections_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> history_ ABSL_GUARDED_BY(mutex_);
  std::map<uintptr_t, size_t> device_memory_ ABSL_GUARDED_BY(mutex_);
  std::map<uintptr_t, size_t> pinned_memory_ ABSL_GUARDED_BY(mutex_);
  std::map<uintptr_t, size_t> registered_memory_ ABSL_GUARDED_BY(mutex_);
  struct Imported {
    int fd;
    size_t bytes;
    bool on_this_device;
    void* mapping = nullptr;  // where it is open
  };
  std::map<std::string, Imported> imported_ ABSL_GUARDED_BY(mutex_);  // by handle
  int running_kernels_ ABSL_GUARDED_BY(mutex_) = 0;
  int open_ipc_ ABSL_GUARDED_BY(mutex_) = 0;
  int opened_ipc_ ABSL_GUARDED_BY(mutex_) = 0;
  int next_stream_ ABSL_GUARDED_BY(mutex_) = 0;
  int streams_and_events_ ABSL_GUARDED_BY(mutex_) = 0;
  int pinned_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int device_calls_ ABSL_GUARDED_BY(mutex_) = 0;
};

// What a launch of the planner below counts as skipped: 7 and, of a backward problem, a sum over
// the bytes of o and lse, which the reference does not read.
int64_t FakeTilesSkipped(const AttentionProblem& problem);

// Groups are a direction, dtype, padded head_dim and bias kind each. A launch counts as computed
// what the reference does.
class FakePlanner final : public cuda::LaunchPlanner {
 public:
  // `bound_bytes`: what WorkspaceBound says; a launch takes `workspace_bytes` for each problem.
  explicit FakePlanner(FakeDevice* device, size_t bound_bytes = 4096, size_t workspace_bytes = 4096)
      : device_(device), bound_bytes_(bound_bytes), workspace_bytes_(workspace_bytes) {}

  uint64_t GroupOf(const AttentionProblem& problem) const override;
  size_t WorkspaceBound(const AttentionProblem& problem) const override;
  absl::StatusOr<std::unique_ptr<cuda::PlannedLaunch>> Plan(
      absl::Span<const AttentionProblem> problems) const override;

 private:
  FakeDevice* const device_;
  const size_t bound_bytes_;
  const size_t workspace_bytes_;
};

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_FAKE_DEVICE_H_
