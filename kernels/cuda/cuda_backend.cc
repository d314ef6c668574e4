#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/transfer_plan.h"

namespace flashbias::cuda {
namespace {

constexpr int kMaxSlots = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(
    const CudaBackendOptions& options, std::shared_ptr<DeviceApi> device,
    std::unique_ptr<LaunchPlanner> planner, std::shared_ptr<PinnedPool> pool, BackendInfo info) {
  if (options.slots < 1 || options.slots > kMaxSlots) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda_slots is ", options.slots, "; accepted: 1 to ", kMaxSlots));
  }
  DeviceHealth start(device.get(), info.device_label);
  ErrorCode code = device->Use();
  if (code != kSuccess) return start.Report(code, "cudaSetDevice");
  size_t free_bytes = 0;
  code = device->FreeMemory(&free_bytes);
  if (code != kSuccess) return start.Report(code, "cudaMemGetInfo");
  const size_t max_device_bytes = options.device_memory_bytes == 0
                                      ? free_bytes / 2
                                      : std::min(options.device_memory_bytes, free_bytes);

  info.max_concurrent_runs = options.slots;
  std::unique_ptr<CudaBackend> backend(new CudaBackend(
      std::move(device), std::move(planner), std::move(pool), std::move(info), max_device_bytes));
  for (int n = 0; n < options.slots; ++n) {
    absl::StatusOr<std::unique_ptr<Slot>> slot =
        Slot::Create({.device = backend->device_.get(),
                      .planner = backend->planner_.get(),
                      .pool = backend->pool_.get(),
                      .arena = &backend->arena_,
                      .health = &backend->health_,
                      .direct_copy_bytes = options.direct_copy_bytes,
                      .max_spin = options.max_spin});
    if (!slot.ok()) return slot.status();
    backend->slots_.push_back(*std::move(slot));
  }
  {
    absl::MutexLock lock(&backend->mutex_);
    for (const auto& slot : backend->slots_) backend->free_slots_.push_back(slot.get());
  }
  for (int n = 0; n < 2 * options.slots; ++n) {
    backend->workers_.emplace_back([self = backend.get()] { self->WorkLoop(); });
  }
  return backend;
}

CudaBackend::CudaBackend(std::shared_ptr<DeviceApi> device, std::unique_ptr<LaunchPlanner> planner,
                         std::shared_ptr<PinnedPool> pool, BackendInfo info,
                         size_t max_device_bytes)
    : info_(std::move(info)),
      device_(std::move(device)),
      planner_(std::move(planner)),
      pool_(std::move(pool)),
      ipc_memory_(std::make_shared<IpcMemoryTable>(device_, info_.device_label)),
      health_(device_.get(), info_.device_label),
      arena_(device_.get(), max_device_bytes) {}

CudaBackend::~CudaBackend() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& worker : workers_) worker.join();
  // Slots and arena give back what they have of the device.
  static_cast<void>(device_->Use());
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> CudaBackend::OpenDeviceMemory(
    absl::Span<const uint8_t> ipc_handle, uint64_t offset, uint64_t bytes) {
  absl::Status healthy = health_.status();
  if (!healthy.ok()) return healthy;
  return ipc_memory_->Open(ipc_handle, offset, bytes);
}

absl::Status CudaBackend::Admit(const AttentionProblem& problem) const {
  const size_t tensors = TensorBytes(problem);
  const size_t workspace = planner_->WorkspaceBound(problem);
  if (tensors <= arena_.max_bytes() && workspace <= arena_.max_bytes() - tensors) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "the request takes up to ", tensors + workspace, " bytes of device memory (tensors ", tensors,
      ", workspace ", workspace, "); the limit is ", arena_.max_bytes()));
}

BackendUsage CudaBackend::usage() const {
  const DeviceArena::Usage device = arena_.usage();
  const PinnedPool::Usage pinned = pool_->usage();
  return {.device_memory_used_bytes = static_cast<int64_t>(device.used_bytes),
          .device_memory_size_bytes = static_cast<int64_t>(device.size_bytes),
          .pinned_used_bytes = static_cast<int64_t>(pinned.used_bytes),
          .pinned_size_bytes = static_cast<int64_t>(pinned.size_bytes),
          .registered_bytes = static_cast<int64_t>(pinned.registered_bytes),
          .errors = health_.errors()};
}

void CudaBackend::Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
                      Done done) {
  absl::MutexLock lock(&mutex_);
  pending_.push_back({.problems = problems, .stats = stats, .done = std::move(done)});
}

void CudaBackend::WorkLoop() {
  // Where it fails, the first call of the first run fails too, and is reported there.
  static_cast<void>(device_->Use());
  for (;;) {
    PendingRun run;
    Slot* slot = nullptr;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &CudaBackend::CanStartOrStops));
      if (pending_.empty()) return;
      run = std::move(pending_.front());
      pending_.pop_front();
      slot = free_slots_.back();
      free_slots_.pop_back();
    }
    absl::Status status = RunOn(*slot, run);
    {
      absl::MutexLock lock(&mutex_);
      free_slots_.push_back(slot);
    }
    std::move(run.done)(std::move(status));
  }
}

absl::Status CudaBackend::RunOn(Slot& slot, const PendingRun& run) {
  absl::Status status = health_.status();
  // One that can never fit must not cost its neighbours a run that fails half-way.
  for (size_t n = 0; status.ok() && n < run.problems.size(); ++n) status = Admit(run.problems[n]);
  if (!status.ok()) return status;
  std::fill(run.stats.begin(), run.stats.end(), ProblemStats{});
  return slot.Run(run.problems, run.stats);
}

}  // namespace flashbias::cuda
