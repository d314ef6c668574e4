#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/cuda/transfer_plan.h"

namespace flashbias::cuda {
namespace {

constexpr int kMaxSlots = 16;

// Bounds of what a caller of Run plans itself: some 30 us.
constexpr size_t kQuickProblems = 8;
constexpr size_t kQuickSequences = 16;            // of a problem
constexpr int64_t kQuickRows = int64_t{1} << 20;  // of all heads together
constexpr int kMaxRunsAtOnce = 4;

// How often idle workers look for pinned memory to give back: what has not been used for so long,
// beyond what ordinary requests take again at once.
constexpr absl::Duration kIdleCheck = absl::Seconds(5);
constexpr absl::Duration kUnusedFor = absl::Seconds(10);
constexpr size_t kKeptPinnedBytes = size_t{512} << 20;

bool IsQuickToPlan(absl::Span<const AttentionProblem> problems) {
  if (problems.size() > kQuickProblems) return false;
  int64_t rows = 0;
  for (const AttentionProblem& problem : problems) {
    if (problem.sequences.size() > kQuickSequences) return false;
    rows += problem.total_q * problem.num_q_heads;
  }
  return rows <= kQuickRows;
}

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
  std::unique_ptr<CudaBackend> backend(
      new CudaBackend(std::move(device), std::move(planner), std::move(pool), std::move(info),
                      max_device_bytes, options.ahead_piece_bytes));
  for (int n = 0; n < options.slots; ++n) {
    absl::StatusOr<std::unique_ptr<Slot>> slot =
        Slot::Create({.device = backend->device_.get(),
                      .planner = backend->planner_.get(),
                      .pool = backend->pool_.get(),
                      .arena = &backend->arena_,
                      .mirrors = &backend->mirrors_,
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
                         size_t max_device_bytes, size_t ahead_piece_bytes)
    : info_(std::move(info)),
      device_(std::move(device)),
      planner_(std::move(planner)),
      pool_(std::move(pool)),
      ipc_memory_(std::make_shared<IpcMemoryTable>(device_, info_.device_label)),
      health_(device_.get(), info_.device_label),
      arena_(device_.get(), max_device_bytes, [this] { mirrors_.RevokeIdle(); }),
      mirrors_({.device = device_.get(),
                .arena = &arena_,
                .health = &health_,
                .pool = pool_.get(),
                .max_bytes = max_device_bytes / 2,
                .piece_bytes = ahead_piece_bytes}) {}

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
    absl::Span<const uint8_t> ipc_handle, uint64_t offset, uint64_t bytes,
    absl::Span<const uint8_t> device_uuid) {
  absl::Status healthy = health_.status();
  if (!healthy.ok()) return healthy;
  const bool known =
      std::any_of(device_uuid.begin(), device_uuid.end(), [](uint8_t byte) { return byte != 0; });
  const bool ours = std::equal(
      device_uuid.begin(), device_uuid.end(), info_.device_uuid.begin(), info_.device_uuid.end(),
      [](uint8_t byte, char own) { return byte == static_cast<uint8_t>(own); });
  if (known && !ours) {
    return absl::NotFoundError(
        absl::StrCat("device_uuid is not that of CUDA device ", info_.device_label));
  }
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
          .device_memory_limit_bytes = static_cast<int64_t>(arena_.max_bytes()),
          .pinned_used_bytes = static_cast<int64_t>(pinned.used_bytes),
          .pinned_size_bytes = static_cast<int64_t>(pinned.size_bytes),
          .pinned_limit_bytes = static_cast<int64_t>(pool_->max_bytes()),
          .registered_bytes = static_cast<int64_t>(pinned.registered_bytes),
          .errors = health_.errors()};
}

void CudaBackend::Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
                      Done done) {
  const bool quick = IsQuickToPlan(problems);
  BegunRun next;
  {
    absl::MutexLock lock(&mutex_);
    pending_.push_back({.problems = problems, .stats = stats, .done = std::move(done)});
    if (!quick || pending_.size() > 1 || !CanBegin()) return;
    next = TakeLocked();
    beginning_ = true;
  }
  static_cast<void>(device_->Use());  // as in WorkLoop
  // Others may bring runs meanwhile, and leave them to whoever is at it already.
  for (int runs = 1;; ++runs) {
    const bool begun = BeginQuickly(&next);
    absl::MutexLock lock(&mutex_);
    beginning_ = false;
    if (begun) {
      begun_.push_back(std::move(next));
    } else {
      pending_.push_front(std::move(next.run));
      free_slots_.push_back(next.slot);
    }
    if (!begun || runs == kMaxRunsAtOnce || !CanBegin() ||
        !IsQuickToPlan(pending_.front().problems)) {
      return;
    }
    next = TakeLocked();
    beginning_ = true;
  }
}

CudaBackend::BegunRun CudaBackend::TakeLocked() {
  BegunRun taken{.run = std::move(pending_.front()), .slot = free_slots_.back(), .status = {}};
  pending_.pop_front();
  free_slots_.pop_back();
  return taken;
}

bool CudaBackend::BeginQuickly(BegunRun* run) {
  run->status = Prepare(run->run);
  return !run->status.ok() ||
         run->slot->Begin(run->run.problems, run->run.stats, Slot::Haste::kOnlyIfQuick);
}

void CudaBackend::WorkLoop() {
  for (;;) {
    // Where it fails, the first call of the run fails too, and is reported there. Every time:
    // whoever drops an upload ahead in `done` leaves its device current.
    static_cast<void>(device_->Use());
    BegunRun next;
    bool begun = true;
    bool idle = false;
    {
      absl::MutexLock lock(&mutex_);
      idle = !mutex_.AwaitWithTimeout(absl::Condition(this, &CudaBackend::HasWork), kIdleCheck);
      if (idle) {
        // below, without the mutex
      } else if (!begun_.empty()) {
        next = std::move(begun_.front());
        begun_.pop_front();
      } else if (CanBegin()) {
        begun = false;
        next = TakeLocked();
        beginning_ = true;
      } else {
        return;
      }
    }
    if (idle) {
      pool_->ReleaseIdle(absl::Now() - kUnusedFor, kKeptPinnedBytes);
      continue;
    }
    if (!begun) {
      begun = BeginQuickly(&next);
      absl::MutexLock lock(&mutex_);
      beginning_ = false;
    }
    if (!begun) next.slot->Begin(next.run.problems, next.run.stats, Slot::Haste::kNone);
    absl::Status status = next.status.ok() ? next.slot->End() : std::move(next.status);
    {
      absl::MutexLock lock(&mutex_);
      free_slots_.push_back(next.slot);
    }
    std::move(next.run.done)(std::move(status));
  }
}

absl::Status CudaBackend::Prepare(const PendingRun& run) const {
  absl::Status status = health_.status();
  // One that can never fit must not cost its neighbours a run that fails half-way.
  for (size_t n = 0; status.ok() && n < run.problems.size(); ++n) status = Admit(run.problems[n]);
  if (status.ok()) std::fill(run.stats.begin(), run.stats.end(), ProblemStats{});
  return status;
}

}  // namespace flashbias::cuda
