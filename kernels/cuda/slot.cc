#include "kernels/cuda/slot.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace flashbias::cuda {
namespace {

// Gathered inputs go to the device in pieces of this size: one is copied by the device while the
// next one is gathered.
constexpr size_t kPieceBytes = size_t{2} << 20;

// What a caller in haste gathers itself: some 20 us.
constexpr size_t kQuickGatheredBytes = size_t{128} << 10;

// No number of tiles.
constexpr unsigned long long kNotCounted = std::numeric_limits<unsigned long long>::max();

// Whether the device has written the counts. It may be doing so: ThreadSanitizer must not look.
ABSL_ATTRIBUTE_NO_SANITIZE_THREAD ABSL_ATTRIBUTE_NOINLINE bool HasArrived(
    const TileCounts* counts) {
  return *static_cast<const volatile unsigned long long*>(&counts->skipped) != kNotCounted;
}

}  // namespace

// Returns from the function where `expression` is not OK.
#define FLASHBIAS_RETURN_IF_ERROR(expression)    \
  do {                                           \
    absl::Status error_status = (expression);    \
    if (!error_status.ok()) return error_status; \
  } while (false)

absl::StatusOr<std::unique_ptr<Slot>> Slot::Create(const Parts& parts) {
  std::unique_ptr<Slot> slot(new Slot(parts));
  FLASHBIAS_RETURN_IF_ERROR(
      slot->Check(parts.device->CreateStream(&slot->stream_), "cudaStreamCreate"));
  for (Event** event : {&slot->started_, &slot->uploaded_, &slot->computed_, &slot->downloaded_}) {
    FLASHBIAS_RETURN_IF_ERROR(slot->Check(parts.device->CreateEvent(event), "cudaEventCreate"));
  }
  return slot;
}

Slot::~Slot() {
  for (Event* const event : {started_, uploaded_, computed_, downloaded_}) {
    if (event != nullptr) parts_.device->DestroyEvent(event);
  }
  if (stream_ != nullptr) parts_.device->DestroyStream(stream_);
}

bool Slot::Begin(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
                 Haste haste) {
  problems_ = problems;
  stats_ = stats;
  phases_ = {};
  FillPart(0);
  const bool quick = part_.transfers->gathered_input_bytes() <= kQuickGatheredBytes;
  if (haste == Haste::kNone || (quick && Reserve(haste))) {
    BeginPart();
    return true;
  }
  part_ = {};
  return false;
}

absl::Status Slot::End() {
  FLASHBIAS_RETURN_IF_ERROR(EndPart());
  while (part_.end < problems_.size()) {
    FillPart(part_.end);
    BeginPart();
    FLASHBIAS_RETURN_IF_ERROR(EndPart());
  }
  for (ProblemStats& s : stats_) {
    s.upload = phases_.upload;
    s.kernel = phases_.kernel;
    s.download = phases_.download;
  }
  return absl::OkStatus();
}

void Slot::FillPart(size_t begin) {
  part_ = {};
  size_t bytes = 0;
  part_.end = begin;
  for (; part_.end < problems_.size(); ++part_.end) {
    const AttentionProblem& problem = problems_[part_.end];
    const size_t workspace = parts_.planner->WorkspaceBound(problem);
    const size_t more = TensorBytes(problem) + workspace;
    if (part_.end > begin && bytes + more > parts_.arena->max_bytes()) break;
    bytes += more;
    part_.workspace_bytes += workspace;
    part_.problems.push_back(&problem);
    part_.stats.push_back(&stats_[part_.end]);
  }
  for (size_t n = 0; n < part_.problems.size(); ++n) {
    const uint64_t id = parts_.planner->GroupOf(*part_.problems[n]);
    auto group = std::find_if(part_.groups.begin(), part_.groups.end(),
                              [id](const Group& other) { return other.id == id; });
    if (group == part_.groups.end()) {
      part_.groups.emplace_back().id = id;
      group = std::prev(part_.groups.end());
    }
    group->members.push_back(n);
  }
  UseMirrors();
  PlanTransfers();
}

void Slot::UseMirrors() {
  const auto holds = [](const void* tensor) {
    return [tensor](const MirrorUse& use) { return use->Contains(tensor); };
  };
  for (const AttentionProblem* const p : part_.problems) {
    for (const ProblemTensor& tensor : TravellingTensors(*p)) {
      if (!tensor.is_input || tensor.bytes == 0 ||
          std::any_of(part_.mirrors.begin(), part_.mirrors.end(), holds(tensor.data))) {
        continue;
      }
      if (MirrorUse use = parts_.mirrors->Use(tensor.data)) part_.mirrors.push_back(std::move(use));
    }
  }
}

void Slot::DropMirrors() {
  for (const MirrorUse& use : part_.mirrors) use->Revoke();
  part_.mirrors.clear();
  PlanTransfers();
}

void Slot::PlanTransfers() {
  const auto already = [this](const void* host, size_t bytes) -> char* {
    for (const MirrorUse& use : part_.mirrors) {
      if (char* const device = use->Find(host, bytes)) return device;
    }
    return nullptr;
  };
  part_.transfers.emplace(part_.problems, *parts_.pool, parts_.direct_copy_bytes, already);
}

bool Slot::Reserve(Haste haste) {
  const auto bytes = [this] { return part_.transfers->device_bytes() + part_.workspace_bytes; };
  absl::StatusOr<DeviceRange> range = parts_.arena->TryReserve(bytes());
  if (absl::IsUnavailable(range.status())) {
    if (haste == Haste::kOnlyIfQuick) return false;
    if (!part_.mirrors.empty()) {
      parts_.mirrors->RevokeIdle();
      range = parts_.arena->TryReserve(bytes());
      if (absl::IsUnavailable(range.status())) DropMirrors();
    }
    if (absl::IsUnavailable(range.status())) range = parts_.arena->Reserve(bytes());
  }
  if (range.ok()) {
    part_.range = *std::move(range);
  } else {
    const ErrorCode sticky = parts_.device->StickyError();
    part_.status =
        sticky == kSuccess ? range.status() : parts_.health->Report(sticky, "cudaMalloc");
  }
  return true;
}

void Slot::BeginPart() {
  if (part_.range.data() == nullptr && part_.status.ok()) Reserve(Haste::kNone);
  if (part_.status.ok()) part_.status = Enqueue();
}

absl::Status Slot::EndPart() {
  while (part_.status.ok() && part_.needed_bytes > part_.workspace_bytes) {
    Drain();
    part_.range = DeviceRange();
    part_.workspace_bytes = part_.needed_bytes;
    BeginPart();
  }
  // Goes with this call, not with the slot's next run; `end` is still asked for.
  Part part = std::move(part_);
  part_ = {};
  part_.end = part.end;
  if (part.status.ok()) part.status = WaitForResults(part);
  if (!part.status.ok()) {
    Drain();
    return part.status;
  }

  const absl::Time copy_begin = absl::Now();
  for (const TransferPlan::Transfer& t : part.transfers->gathered_outputs()) {
    std::memcpy(t.host, part.outputs.data() + (t.offset - part.transfers->gathered_outputs_begin()),
                t.bytes);
  }
  const absl::Duration copied = absl::Now() - copy_begin;
  for (const Group& group : part.groups) {
    for (size_t n = 0; n < group.members.size(); ++n) {
      ProblemStats& s = *part.stats[group.members[n]];
      s.tiles_computed = static_cast<int64_t>(group.tile_counts[n].computed);
      s.tiles_skipped = static_cast<int64_t>(group.tile_counts[n].skipped);
    }
  }
  FLASHBIAS_RETURN_IF_ERROR(AddBetween(started_, uploaded_, &phases_.upload));
  FLASHBIAS_RETURN_IF_ERROR(AddBetween(uploaded_, computed_, &phases_.kernel));
  FLASHBIAS_RETURN_IF_ERROR(AddBetween(computed_, downloaded_, &phases_.download));
  phases_.download += copied;
  return absl::OkStatus();
}

absl::Status Slot::Enqueue() {
  DeviceApi& api = *parts_.device;
  FLASHBIAS_RETURN_IF_ERROR(Check(api.Record(started_, stream_), "cudaEventRecord"));
  FLASHBIAS_RETURN_IF_ERROR(JoinMirrors());
  FLASHBIAS_RETURN_IF_ERROR(Stage(part_.transfers->gathered_input_bytes(), &part_.inputs));
  FLASHBIAS_RETURN_IF_ERROR(EnqueueUploads());

  // Planned while the tensors travel.
  size_t staging_bytes = 0;
  part_.needed_bytes = 0;
  for (Group& group : part_.groups) {
    std::vector<AttentionProblem> on_device;
    on_device.reserve(group.members.size());
    for (const size_t n : group.members) {
      on_device.push_back(part_.transfers->OnDevice(n, part_.range.data()));
    }
    absl::StatusOr<std::unique_ptr<PlannedLaunch>> launch = parts_.planner->Plan(on_device);
    if (!launch.ok()) return launch.status();
    group.launch = *std::move(launch);
    staging_bytes += AlignTensor(group.launch->staging_bytes());
    part_.needed_bytes += AlignTensor(group.launch->workspace_bytes());
  }
  if (part_.needed_bytes > part_.workspace_bytes) return absl::OkStatus();

  FLASHBIAS_RETURN_IF_ERROR(Stage(staging_bytes, &part_.plans));
  char* staging = part_.plans.data();
  char* workspace = part_.range.data() + part_.transfers->device_bytes();
  for (Group& group : part_.groups) {
    FLASHBIAS_RETURN_IF_ERROR(group.launch->Bind(staging, workspace));
    FLASHBIAS_RETURN_IF_ERROR(Check(group.launch->Upload(stream_), "the upload of a plan"));
    staging += AlignTensor(group.launch->staging_bytes());
    workspace += AlignTensor(group.launch->workspace_bytes());
  }
  FLASHBIAS_RETURN_IF_ERROR(Check(api.Record(uploaded_, stream_), "cudaEventRecord"));
  for (Group& group : part_.groups) {
    FLASHBIAS_RETURN_IF_ERROR(Check(group.launch->Launch(stream_), "the launch of attention"));
  }
  FLASHBIAS_RETURN_IF_ERROR(Check(api.Record(computed_, stream_), "cudaEventRecord"));
  FLASHBIAS_RETURN_IF_ERROR(EnqueueDownloads());
  return Check(api.Record(downloaded_, stream_), "cudaEventRecord");
}

absl::Status Slot::JoinMirrors() {
  bool joined = true;
  for (const MirrorUse& use : part_.mirrors) {
    joined = joined && Check(use->Join(stream_), "cudaStreamWaitEvent").ok();
  }
  if (joined) return absl::OkStatus();
  part_.range = DeviceRange();
  DropMirrors();
  Reserve(Haste::kNone);
  return part_.status;
}

absl::Status Slot::EnqueueUploads() {
  char* const device = part_.range.data();
  char* const staging = part_.inputs.data();
  for (const TransferPlan::Transfer& t : part_.transfers->direct_inputs()) {
    FLASHBIAS_RETURN_IF_ERROR(
        Copy(device + t.offset, t.host, t.bytes, CopyKind::kHostToDevice, "an upload"));
  }
  size_t sent = 0;
  for (const TransferPlan::Transfer& t : part_.transfers->gathered_inputs()) {
    for (size_t done = 0; done < t.bytes;) {
      const size_t piece = std::min(t.bytes - done, sent + kPieceBytes - (t.offset + done));
      std::memcpy(staging + t.offset + done, t.host + done, piece);
      done += piece;
      if (t.offset + done < sent + kPieceBytes) continue;
      FLASHBIAS_RETURN_IF_ERROR(
          Copy(device + sent, staging + sent, kPieceBytes, CopyKind::kHostToDevice, "an upload"));
      sent += kPieceBytes;
    }
  }
  // What lies between tensors goes too; nothing reads it.
  const size_t rest = part_.transfers->gathered_input_bytes() - sent;
  return rest == 0
             ? absl::OkStatus()
             : Copy(device + sent, staging + sent, rest, CopyKind::kHostToDevice, "an upload");
}

absl::Status Slot::EnqueueDownloads() {
  const TransferPlan& transfers = *part_.transfers;
  const char* const device = part_.range.data();
  size_t bytes = transfers.gathered_output_bytes();
  for (const Group& group : part_.groups) {
    bytes += AlignTensor(group.members.size() * sizeof(TileCounts));
  }
  FLASHBIAS_RETURN_IF_ERROR(Stage(bytes, &part_.outputs));

  char* at = part_.outputs.data();
  if (transfers.gathered_output_bytes() > 0) {
    FLASHBIAS_RETURN_IF_ERROR(Copy(at, device + transfers.gathered_outputs_begin(),
                                   transfers.gathered_output_bytes(), CopyKind::kDeviceToHost,
                                   "a download"));
    at += transfers.gathered_output_bytes();
  }
  for (const TransferPlan::Transfer& t : transfers.direct_outputs()) {
    FLASHBIAS_RETURN_IF_ERROR(
        Copy(t.host, device + t.offset, t.bytes, CopyKind::kDeviceToHost, "a download"));
  }
  // Last, so that whoever sees them arrive need hardly ask the device.
  for (Group& group : part_.groups) {
    const size_t size = group.members.size() * sizeof(TileCounts);
    auto* const counts = reinterpret_cast<TileCounts*>(at);
    counts[group.members.size() - 1].skipped = kNotCounted;
    FLASHBIAS_RETURN_IF_ERROR(
        Copy(counts, group.launch->tile_counts(), size, CopyKind::kDeviceToHost, "a download"));
    group.tile_counts = counts;
    part_.last_counts = &counts[group.members.size() - 1];
    at += AlignTensor(size);
  }
  return absl::OkStatus();
}

absl::Status Slot::WaitForResults(const Part& part) {
  const absl::Time give_up = absl::Now() + parts_.max_spin;
  while (!HasArrived(part.last_counts) && absl::Now() < give_up) {
  }
  ErrorCode code = parts_.device->Query(downloaded_);
  while (code == kNotReady && absl::Now() < give_up) code = parts_.device->Query(downloaded_);
  if (code == kNotReady) code = parts_.device->Wait(downloaded_);
  return Check(code, "attention");
}

void Slot::Drain() {
  if (parts_.device->Wait(stream_) != kSuccess) parts_.device->StickyError();
}

absl::Status Slot::AddBetween(Event* from, Event* to, absl::Duration* sum) {
  float milliseconds = 0;
  FLASHBIAS_RETURN_IF_ERROR(
      Check(parts_.device->Elapsed(from, to, &milliseconds), "cudaEventElapsedTime"));
  *sum += absl::Milliseconds(milliseconds);
  return absl::OkStatus();
}

absl::Status Slot::Stage(size_t bytes, HostBlock* block) {
  absl::StatusOr<HostBlock> staging = parts_.pool->Allocate(bytes);
  if (!staging.ok()) staging = heap_.Allocate(bytes);
  if (!staging.ok()) return staging.status();
  *block = *std::move(staging);
  return absl::OkStatus();
}

absl::Status Slot::Check(ErrorCode code, absl::string_view what) {
  return code == kSuccess ? absl::OkStatus() : parts_.health->Report(code, what);
}

absl::Status Slot::Copy(void* to, const void* from, size_t bytes, CopyKind kind,
                        absl::string_view what) {
  return Check(parts_.device->Copy(to, from, bytes, kind, stream_), what);
}

#undef FLASHBIAS_RETURN_IF_ERROR

}  // namespace flashbias::cuda
