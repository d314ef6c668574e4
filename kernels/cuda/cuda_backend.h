// The production backend for one CUDA device.
//
// A run takes a slot (slot.h), as many at once as there are slots. Where a slot is free, device
// memory is there and there is little to prepare, the caller of Run enqueues everything itself:
// waking a thread takes longer. All else waits in a queue for a worker thread. Either way a worker
// waits for the device: it asks for a while, then sleeps (cudaEventSynchronize on an event made for
// that), gives the slot back and only then calls `done`. Idle workers sleep on a condition. There
// are twice as many workers as slots, so that slots stay busy while answers are made.
// cudaLaunchHostFunc would call back where no CUDA call is legal, and not at all after an error.
//
// Results are those of AttentionPlan: no bit depends on slots, batches or where a tensor lies.
//
// After an error from which the device does not recover, the runs that meet it and all later ones
// fail with INTERNAL, at once, and health() says why. Other errors fail their run only.
//
// Thread-safety: as AttentionBackend. The destructor waits for runs in flight; the pool lives as
// long as its blocks.
#ifndef FLASHBIAS_KERNELS_CUDA_CUDA_BACKEND_H_
#define FLASHBIAS_KERNELS_CUDA_CUDA_BACKEND_H_

#include <cstddef>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/attention_backend.h"
#include "kernels/cuda/device_api.h"
#include "kernels/cuda/device_arena.h"
#include "kernels/cuda/device_health.h"
#include "kernels/cuda/ipc_memory.h"
#include "kernels/cuda/launch_planner.h"
#include "kernels/cuda/mirror_set.h"
#include "kernels/cuda/pinned_pool.h"
#include "kernels/cuda/slot.h"

namespace flashbias::cuda {

struct CudaBackendOptions {
  // Runs in flight at once, 1 to 16. Three keep both directions of the link and the multiprocessors
  // busy.
  int slots = 3;
  // Device memory for tensors and workspaces of runs in flight; 0: half of what is free at start.
  // Never more than what is free at start.
  size_t device_memory_bytes = 0;
  // Pinned tensors from this size on are copied directly; smaller ones are gathered first, because
  // a copy of a few KiB takes the driver longer than the processor.
  size_t direct_copy_bytes = size_t{32} << 10;
  // How long a worker asks the device whether its run is done before it goes to sleep; being woken
  // by the device takes 70 us. 0: it sleeps at once.
  absl::Duration max_spin = absl::Microseconds(200);
  // Of a copy that is made ahead of its run, at least; requests with fewer bytes of inputs are
  // copied when they run.
  size_t ahead_piece_bytes = size_t{1} << 20;
};

class CudaBackend final : public AttentionBackend {
 public:
  // `info` is what the caller knows of the device; slots are added. `pool` may be shared with other
  // devices' backends. INVALID_ARGUMENT: an option out of range; INTERNAL: the device fails.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(const CudaBackendOptions& options,
                                                             std::shared_ptr<DeviceApi> device,
                                                             std::unique_ptr<LaunchPlanner> planner,
                                                             std::shared_ptr<PinnedPool> pool,
                                                             BackendInfo info);
  ~CudaBackend() override;

  const BackendInfo& info() const override { return info_; }
  HostAllocator& host_allocator() override { return *pool_; }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> OpenDeviceMemory(
      absl::Span<const uint8_t> ipc_handle, uint64_t offset, uint64_t bytes,
      absl::Span<const uint8_t> device_uuid) override;
  absl::Status Admit(const AttentionProblem& problem) const override;
  absl::Status health() const override { return health_.status(); }
  BackendUsage usage() const override;
  std::unique_ptr<UploadAhead> StartUpload(const HostBlock& inputs) override {
    return mirrors_.Start(inputs);
  }
  void Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
           Done done) override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct PendingRun {
    absl::Span<const AttentionProblem> problems;
    absl::Span<ProblemStats> stats;
    Done done;
  };
  // One that has a slot and was begun, or failed to.
  struct BegunRun {
    PendingRun run;
    Slot* slot = nullptr;
    absl::Status status;
  };

  CudaBackend(std::shared_ptr<DeviceApi> device, std::unique_ptr<LaunchPlanner> planner,
              std::shared_ptr<PinnedPool> pool, BackendInfo info, size_t max_device_bytes,
              size_t ahead_piece_bytes);

  void WorkLoop() ABSL_LOCKS_EXCLUDED(mutex_);
  bool CanBegin() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !beginning_ && !pending_.empty() && !free_slots_.empty();
  }
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !begun_.empty() || CanBegin() || (stopping_ && pending_.empty() && !beginning_);
  }
  // Takes the first pending run and a slot. REQUIRES: CanBegin().
  BegunRun TakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Prepares and begins a run, where it can be begun quickly; false: the rest is to be done.
  bool BeginQuickly(BegunRun* run);
  // OK: every problem can run, and the stats are reset.
  absl::Status Prepare(const PendingRun& run) const;

  // Constant after construction, in the order of dependence.
  const BackendInfo info_;
  const std::shared_ptr<DeviceApi> device_;
  const std::unique_ptr<LaunchPlanner> planner_;
  const std::shared_ptr<PinnedPool> pool_;
  const std::shared_ptr<IpcMemoryTable> ipc_memory_;
  DeviceHealth health_;
  DeviceArena arena_;
  MirrorSet mirrors_;
  std::vector<std::unique_ptr<Slot>> slots_;

  absl::Mutex mutex_;
  std::deque<PendingRun> pending_ ABSL_GUARDED_BY(mutex_);
  std::deque<BegunRun> begun_ ABSL_GUARDED_BY(mutex_);
  // A thread enqueues runs: one at a time, because the driver's calls exclude each other, and calls
  // of several threads in turns take longer than those of one thread after the other.
  bool beginning_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Slot*> free_slots_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::vector<std::thread> workers_;  // last: started when everything else stands
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_CUDA_BACKEND_H_
