#include "kernels/cuda/slot.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace flashbias::cuda {
namespace {

// Gathered inputs go to the device in pieces of this size: one is copied by the device while the
// next one is gathered.
constexpr size_t kPieceBytes = size_t{2} << 20;

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

absl::Status Slot::Run(absl::Span<const AttentionProblem> problems,
                       absl::Span<ProblemStats> stats) {
  Phases phases;
  for (size_t begin = 0; begin < problems.size();) {
    // One part: as many as fit.
    std::vector<const AttentionProblem*> part;
    std::vector<ProblemStats*> part_stats;
    size_t bytes = 0;
    size_t workspace_bytes = 0;
    for (size_t n = begin; n < problems.size(); ++n) {
      const size_t workspace = parts_.planner->WorkspaceBound(problems[n]);
      const size_t more = TensorBytes(problems[n]) + workspace;
      if (n > begin && bytes + more > parts_.arena->max_bytes()) break;
      bytes += more;
      workspace_bytes += workspace;
      part.push_back(&problems[n]);
      part_stats.push_back(&stats[n]);
    }
    FLASHBIAS_RETURN_IF_ERROR(RunPart(part, part_stats, workspace_bytes, &phases));
    begin += part.size();
  }
  for (ProblemStats& s : stats) {
    s.upload = phases.upload;
    s.kernel = phases.kernel;
    s.download = phases.download;
  }
  return absl::OkStatus();
}

absl::Status Slot::RunPart(absl::Span<const AttentionProblem* const> problems,
                           absl::Span<ProblemStats* const> stats, size_t workspace_bytes,
                           Phases* phases) {
  const TransferPlan transfers(problems, *parts_.pool, parts_.direct_copy_bytes);
  std::vector<Group> groups;
  for (size_t n = 0; n < problems.size(); ++n) {
    const uint64_t id = parts_.planner->GroupOf(*problems[n]);
    auto group = std::find_if(groups.begin(), groups.end(),
                              [id](const Group& other) { return other.id == id; });
    if (group == groups.end()) {
      groups.emplace_back().id = id;
      group = std::prev(groups.end());
    }
    group->members.push_back(n);
  }

  DeviceRange range;
  HostBlock inputs;
  HostBlock plans;
  HostBlock outputs;
  for (;;) {
    absl::StatusOr<DeviceRange> reserved =
        parts_.arena->Reserve(transfers.device_bytes() + workspace_bytes);
    if (!reserved.ok()) {
      const ErrorCode sticky = parts_.device->StickyError();
      return sticky == kSuccess ? reserved.status() : parts_.health->Report(sticky, "cudaMalloc");
    }
    range = *std::move(reserved);
    size_t needed = 0;
    const absl::Status status = Enqueue(transfers, absl::MakeSpan(groups), range.data(),
                                        workspace_bytes, &needed, &inputs, &plans, &outputs);
    if (status.ok() && needed <= workspace_bytes) break;
    Drain();
    FLASHBIAS_RETURN_IF_ERROR(status);
    range = DeviceRange();
    workspace_bytes = needed;
  }
  absl::Status computed = WaitForResults();
  if (!computed.ok()) {
    Drain();
    return computed;
  }

  const absl::Time copy_begin = absl::Now();
  for (const TransferPlan::Transfer& t : transfers.gathered_outputs()) {
    std::memcpy(t.host, outputs.data() + (t.offset - transfers.gathered_outputs_begin()), t.bytes);
  }
  const absl::Duration copied = absl::Now() - copy_begin;
  for (const Group& group : groups) {
    for (size_t n = 0; n < group.members.size(); ++n) {
      ProblemStats& s = *stats[group.members[n]];
      s.tiles_computed = static_cast<int64_t>(group.tile_counts[n].computed);
      s.tiles_skipped = static_cast<int64_t>(group.tile_counts[n].skipped);
    }
  }
  FLASHBIAS_RETURN_IF_ERROR(AddBetween(started_, uploaded_, &phases->upload));
  FLASHBIAS_RETURN_IF_ERROR(AddBetween(uploaded_, computed_, &phases->kernel));
  FLASHBIAS_RETURN_IF_ERROR(AddBetween(computed_, downloaded_, &phases->download));
  phases->download += copied;
  return absl::OkStatus();
}

absl::Status Slot::Enqueue(const TransferPlan& transfers, absl::Span<Group> groups, char* device,
                           size_t workspace_bytes, size_t* needed_bytes, HostBlock* inputs,
                           HostBlock* plans, HostBlock* outputs) {
  DeviceApi& api = *parts_.device;
  FLASHBIAS_RETURN_IF_ERROR(Check(api.Record(started_, stream_), "cudaEventRecord"));
  FLASHBIAS_RETURN_IF_ERROR(Stage(transfers.gathered_input_bytes(), inputs));
  FLASHBIAS_RETURN_IF_ERROR(EnqueueUploads(transfers, device, inputs->data()));

  // Planned while the tensors travel.
  size_t staging_bytes = 0;
  *needed_bytes = 0;
  for (Group& group : groups) {
    std::vector<AttentionProblem> on_device;
    on_device.reserve(group.members.size());
    for (const size_t n : group.members) on_device.push_back(transfers.OnDevice(n, device));
    absl::StatusOr<std::unique_ptr<PlannedLaunch>> launch = parts_.planner->Plan(on_device);
    if (!launch.ok()) return launch.status();
    group.launch = *std::move(launch);
    staging_bytes += AlignTensor(group.launch->staging_bytes());
    *needed_bytes += AlignTensor(group.launch->workspace_bytes());
  }
  if (*needed_bytes > workspace_bytes) return absl::OkStatus();

  FLASHBIAS_RETURN_IF_ERROR(Stage(staging_bytes, plans));
  char* staging = plans->data();
  char* workspace = device + transfers.device_bytes();
  for (Group& group : groups) {
    FLASHBIAS_RETURN_IF_ERROR(group.launch->Bind(staging, workspace));
    FLASHBIAS_RETURN_IF_ERROR(Check(group.launch->Upload(stream_), "the upload of a plan"));
    staging += AlignTensor(group.launch->staging_bytes());
    workspace += AlignTensor(group.launch->workspace_bytes());
  }
  FLASHBIAS_RETURN_IF_ERROR(Check(api.Record(uploaded_, stream_), "cudaEventRecord"));
  for (Group& group : groups) {
    FLASHBIAS_RETURN_IF_ERROR(Check(group.launch->Launch(stream_), "the launch of attention"));
  }
  FLASHBIAS_RETURN_IF_ERROR(Check(api.Record(computed_, stream_), "cudaEventRecord"));
  FLASHBIAS_RETURN_IF_ERROR(EnqueueDownloads(transfers, groups, device, outputs));
  return Check(api.Record(downloaded_, stream_), "cudaEventRecord");
}

absl::Status Slot::EnqueueUploads(const TransferPlan& transfers, char* device, char* staging) {
  for (const TransferPlan::Transfer& t : transfers.direct_inputs()) {
    FLASHBIAS_RETURN_IF_ERROR(
        Copy(device + t.offset, t.host, t.bytes, CopyKind::kHostToDevice, "an upload"));
  }
  size_t sent = 0;
  for (const TransferPlan::Transfer& t : transfers.gathered_inputs()) {
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
  const size_t rest = transfers.gathered_input_bytes() - sent;
  return rest == 0
             ? absl::OkStatus()
             : Copy(device + sent, staging + sent, rest, CopyKind::kHostToDevice, "an upload");
}

absl::Status Slot::EnqueueDownloads(const TransferPlan& transfers, absl::Span<Group> groups,
                                    char* device, HostBlock* outputs) {
  size_t bytes = transfers.gathered_output_bytes();
  for (const Group& group : groups) bytes += AlignTensor(group.members.size() * sizeof(TileCounts));
  FLASHBIAS_RETURN_IF_ERROR(Stage(bytes, outputs));

  char* at = outputs->data();
  if (transfers.gathered_output_bytes() > 0) {
    FLASHBIAS_RETURN_IF_ERROR(Copy(at, device + transfers.gathered_outputs_begin(),
                                   transfers.gathered_output_bytes(), CopyKind::kDeviceToHost,
                                   "a download"));
    at += transfers.gathered_output_bytes();
  }
  for (Group& group : groups) {
    const size_t size = group.members.size() * sizeof(TileCounts);
    FLASHBIAS_RETURN_IF_ERROR(
        Copy(at, group.launch->tile_counts(), size, CopyKind::kDeviceToHost, "a download"));
    group.tile_counts = reinterpret_cast<const TileCounts*>(at);
    at += AlignTensor(size);
  }
  for (const TransferPlan::Transfer& t : transfers.direct_outputs()) {
    FLASHBIAS_RETURN_IF_ERROR(
        Copy(t.host, device + t.offset, t.bytes, CopyKind::kDeviceToHost, "a download"));
  }
  return absl::OkStatus();
}

absl::Status Slot::WaitForResults() {
  const absl::Time give_up = absl::Now() + parts_.max_spin;
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
