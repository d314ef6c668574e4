// What one run at a time takes of a device, and the running itself: upload, compute, download.
//
// A slot has one stream, on which everything of its runs is ordered. Runs of different slots share
// no stream and never wait for each other there, so that one's copies go on beside another's
// kernel: a device has an engine for each direction beside its multiprocessors. Streams for each
// phase would overlap the same, but take events between them for every run.
//
// Thread-safety: one run at a time. What the parts point to must outlive the slot.
#ifndef FLASHBIAS_KERNELS_CUDA_SLOT_H_
#define FLASHBIAS_KERNELS_CUDA_SLOT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/attention_backend.h"
#include "kernels/cuda/device_api.h"
#include "kernels/cuda/device_arena.h"
#include "kernels/cuda/device_health.h"
#include "kernels/cuda/launch_planner.h"
#include "kernels/cuda/pinned_pool.h"
#include "kernels/cuda/transfer_plan.h"
#include "kernels/heap_allocator.h"
#include "kernels/host_memory.h"

namespace flashbias::cuda {

class Slot {
 public:
  struct Parts {
    DeviceApi* device = nullptr;
    const LaunchPlanner* planner = nullptr;
    PinnedPool* pool = nullptr;
    DeviceArena* arena = nullptr;
    DeviceHealth* health = nullptr;
    size_t direct_copy_bytes = 0;  // see CudaBackendOptions
    absl::Duration max_spin;       // see CudaBackendOptions
  };

  // INTERNAL: the device gives no stream or event.
  static absl::StatusOr<std::unique_ptr<Slot>> Create(const Parts& parts);
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
  ~Slot();

  // Computes all problems and waits for the results, on a thread on which the device is current.
  // What does not fit into the arena at once goes through in parts. When this returns, with
  // whatever status, the device touches no memory of the problems any more.
  // RESOURCE_EXHAUSTED: a problem that never fits; INTERNAL: the device failed.
  absl::Status Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats);

 private:
  // The durations of a run.
  struct Phases {
    absl::Duration upload, kernel, download;
  };
  // The problems of a part that share a launch.
  struct Group {
    uint64_t id = 0;
    std::vector<size_t> members;  // indices into the part
    std::unique_ptr<PlannedLaunch> launch;
    const TileCounts* tile_counts = nullptr;  // [members], in the staging memory
  };

  explicit Slot(const Parts& parts) : parts_(parts) {}

  // `workspace_bytes`: what the planner bounds the part's workspaces by.
  absl::Status RunPart(absl::Span<const AttentionProblem* const> problems,
                       absl::Span<ProblemStats* const> stats, size_t workspace_bytes,
                       Phases* phases);

  // Everything of a part but the waiting, into the device memory that starts at `device`: tensors
  // first, then workspaces. Where those turn out to take more than `workspace_bytes`, nothing after
  // the uploads is enqueued; they take *needed_bytes. Fills the three staging blocks.
  absl::Status Enqueue(const TransferPlan& transfers, absl::Span<Group> groups, char* device,
                       size_t workspace_bytes, size_t* needed_bytes, HostBlock* inputs,
                       HostBlock* plans, HostBlock* outputs);
  absl::Status EnqueueUploads(const TransferPlan& transfers, char* device, char* staging);
  absl::Status EnqueueDownloads(const TransferPlan& transfers, absl::Span<Group> groups,
                                char* device, HostBlock* outputs);
  absl::Status WaitForResults();
  absl::Status AddBetween(Event* from, Event* to, absl::Duration* sum);

  // A block for staging: pinned, or, where the pool has none left, from the heap: slower, never
  // stuck.
  absl::Status Stage(size_t bytes, HostBlock* block);
  // Waits until what was enqueued no longer reads and writes memory that is not ours to keep.
  void Drain();
  absl::Status Check(ErrorCode code, absl::string_view what);
  absl::Status Copy(void* to, const void* from, size_t bytes, CopyKind kind,
                    absl::string_view what);

  const Parts parts_;
  HeapAllocator heap_;
  Stream* stream_ = nullptr;
  Event* started_ = nullptr;
  Event* uploaded_ = nullptr;
  Event* computed_ = nullptr;
  Event* downloaded_ = nullptr;
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_SLOT_H_
