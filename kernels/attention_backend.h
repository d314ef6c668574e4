// The device that computes attention, seen from the server.
//
// Thread-safety: Run may be called from any thread, also while earlier runs are in flight, up to
// info().max_concurrent_runs, and so may health and usage. Ownership: the problems' pointers and
// the `problems` and `stats` arrays must stay valid until `done` has been called.
#ifndef FLASHBIAS_KERNELS_ATTENTION_BACKEND_H_
#define FLASHBIAS_KERNELS_ATTENTION_BACKEND_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/device_memory.h"
#include "kernels/host_memory.h"
#include "kernels/upload_ahead.h"

namespace flashbias {

// What a backend serves; constant after construction.
struct BackendInfo {
  std::string name;                  // "cpu" or "cuda"
  std::vector<std::string> devices;  // one line each: "AVX2, 2 threads"
  std::string device_label = "0";    // names the device among its like, in metrics
  std::string device_uuid;           // its 16 bytes; empty: it has none
  std::vector<DType> dtypes;
  int max_head_dim = kMaxHeadDim;
  std::vector<int> fast_head_dims;  // computed without padding
  int max_rank = kMaxRank;
  // Queries or keys of one sequence.
  int64_t max_sequence_rows = std::numeric_limits<int64_t>::max();
  int max_concurrent_runs = 1;  // how many runs may usefully be in flight at once
};

// What one problem's run did. A tile is a (head, query tile, key tile) triple that the mask admits;
// tiles the mask excludes are in neither count.
struct ProblemStats {
  int64_t tiles_computed = 0;
  int64_t tiles_skipped = 0;  // left out under the eps bound

  // Where the time of the run went. The problems of one run share it: each carries the whole.
  absl::Duration upload = {};    // until the inputs and the plan were on the device
  absl::Duration kernel = {};    // from there to the last result on the device
  absl::Duration download = {};  // from there until every o and lse was written
};

// What a backend holds and has met, at one moment.
struct BackendUsage {
  int64_t device_memory_used_bytes = 0;   // of runs in flight and uploads ahead of them
  int64_t device_memory_size_bytes = 0;   // taken from the device, used or not
  int64_t device_memory_limit_bytes = 0;  // that size may reach
  int64_t pinned_used_bytes = 0;          // blocks of host_allocator() that someone holds
  int64_t pinned_size_bytes = 0;          // taken from the system, used or not
  int64_t pinned_limit_bytes = 0;         // that size may reach
  int64_t registered_bytes = 0;           // registered with host_allocator()
  std::vector<std::pair<std::string, int64_t>> errors;  // device errors so far, by their name
};

class AttentionBackend {
 public:
  using Done = absl::AnyInvocable<void(absl::Status) &&>;

  virtual ~AttentionBackend() = default;

  virtual const BackendInfo& info() const = 0;

  // Where tensors should lie. Run takes problems in any host memory; what lies in blocks of this
  // allocator, or is registered with it, reaches the device without another copy. Lives as long as
  // the backend; backends that were made together (kernels/backend_factory.h) share one.
  virtual HostAllocator& host_allocator() = 0;

  // Begins to copy a request's inputs to the device while they arrive in a block of
  // host_allocator(). Null: there is nothing to gain, or no room. Never waits for runs.
  virtual std::unique_ptr<UploadAhead> StartUpload(const HostBlock& /*inputs*/) { return nullptr; }

  // Opens `bytes` from `offset` on of an allocation that another process made on this backend's
  // device. `ipc_handle`: how that process names the allocation, for CUDA the bytes of a
  // cudaIpcMemHandle_t. `device_uuid`: of the device that it is on, or zeroes: not known; CUDA
  // alone opens a handle on any device that reaches the memory. INVALID_ARGUMENT: it names nothing
  // that can be opened; NOT_FOUND: it names memory of another device; OUT_OF_RANGE: the range is
  // not within the allocation, whose size is named; FAILED_PRECONDITION: this backend has no device
  // memory. May wait for the device.
  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> OpenDeviceMemory(
      absl::Span<const uint8_t> /*ipc_handle*/, uint64_t /*offset*/, uint64_t /*bytes*/,
      absl::Span<const uint8_t> /*device_uuid*/) {
    return absl::FailedPreconditionError(
        absl::StrCat("the ", info().name, " backend has no device memory; accepted: host memory"));
  }

  // OK, or why this problem can never run here: RESOURCE_EXHAUSTED naming the sizes. Cheap.
  virtual absl::Status Admit(const AttentionProblem& /*problem*/) const { return absl::OkStatus(); }

  // OK, or why every run fails from now on. Cheap.
  virtual absl::Status health() const { return absl::OkStatus(); }
  virtual BackendUsage usage() const { return {}; }

  // Starts computing all problems and returns at once. `done` is called exactly once, from a thread
  // of the backend, after every `o`, `lse` and `stats` entry was written (OK) or abandoned (error);
  // it must not block for long. The result of a problem never depends on the others in the call.
  // RESOURCE_EXHAUSTED: a problem that Admit refuses; every other error is the backend's fault.
  // REQUIRES: stats.size() == problems.size().
  virtual void Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
                   Done done) = 0;
};

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_ATTENTION_BACKEND_H_
