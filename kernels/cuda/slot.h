// What one run at a time takes of a device, and the running itself: upload, compute, download.
//
// A slot has one stream, on which everything of its runs is ordered. Runs of different slots share
// no stream and never wait for each other there, so that one's copies go on beside another's
// kernel: a device has an engine for each direction beside its multiprocessors. Streams for each
// phase would overlap the same, but take events between them for every run.
//
// Thread-safety: one run at a time, whose steps may come from different threads. What the parts
// point to must outlive the slot.
#ifndef FLASHBIAS_KERNELS_CUDA_SLOT_H_
#define FLASHBIAS_KERNELS_CUDA_SLOT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
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

  // A run takes two steps, so that whoever brings it need not stay until it is done; both on
  // threads on which the device is current. What the spans refer to stays until End has returned.
  // What does not fit into the arena at once goes through in parts.

  // kOnlyIfQuick: not where device memory must be waited for or much must be gathered first.
  enum class Haste : uint8_t { kNone, kOnlyIfQuick };

  // Enqueues the first part. False, and as if nothing had been asked: it would not be quick.
  // REQUIRES: problems is not empty.
  bool Begin(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
             Haste haste);
  // Waits for the results and computes what is left. When it returns, with whatever status, the
  // device touches no memory of the problems any more. RESOURCE_EXHAUSTED: a problem that never
  // fits; INTERNAL: the device failed, here or in Begin. REQUIRES: Begin returned true.
  absl::Status End();

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

  // The problems that are on the device together, and what they hold meanwhile.
  struct Part {
    size_t end = 0;              // the first problem of the run after it
    size_t workspace_bytes = 0;  // that workspaces may take: what the planner bounds them by
    size_t needed_bytes = 0;     // that they do take
    absl::Status status;
    std::vector<ProblemStats*> stats;
    std::optional<TransferPlan> transfers;
    std::vector<Group> groups;
    DeviceRange range;  // tensors, then workspaces
    HostBlock inputs, plans, outputs;
    const TileCounts* last_counts = nullptr;  // in `outputs`: what arrives last
  };

  explicit Slot(const Parts& parts) : parts_(parts) {}

  // As many problems from `begin` on as fit into the arena.
  void FillPart(size_t begin);
  // Device memory for the part, or its status; false: it would have to wait.
  bool Reserve(Haste haste);
  // What goes wrong is in part_.status; EndPart returns it.
  void BeginPart();
  absl::Status EndPart();
  // Everything but the waiting. Where the workspaces turn out to take more than they may, nothing
  // after the uploads is enqueued.
  absl::Status Enqueue();
  absl::Status EnqueueUploads();
  absl::Status EnqueueDownloads();
  // Looks at memory first, then asks the device, then sleeps: asking keeps other threads from
  // enqueueing.
  absl::Status WaitForResults(const Part& part);
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

  // Of the run between Begin and End.
  absl::Span<const AttentionProblem> problems_;
  absl::Span<ProblemStats> stats_;
  Phases phases_;
  Part part_;
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_SLOT_H_
