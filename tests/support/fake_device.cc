#include "tests/support/fake_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <new>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/problem_tensors.h"
#include "tests/support/reference_backend.h"

namespace flashbias::support {
namespace {

constexpr cuda::ErrorCode kInvalidHandle = 400;      // cudaErrorInvalidResourceHandle
constexpr cuda::ErrorCode kInvalidValue = 1;         // cudaErrorInvalidValue
constexpr cuda::ErrorCode kAlreadyMapped = 208;      // cudaErrorAlreadyMapped
constexpr cuda::ErrorCode kAlreadyRegistered = 712;  // cudaErrorHostMemoryAlreadyRegistered

// As CUDA's, of this thread.
thread_local const FakeDevice* current_device = nullptr;

using cuda::CopyKind;
using cuda::ErrorCode;
using cuda::kNotReady;
using cuda::kOutOfMemory;
using cuda::kSuccess;

constexpr std::align_val_t kAlignment{256};

bool Holds(const std::map<uintptr_t, size_t>& live, const void* data, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  auto next = live.upper_bound(address);
  if (next == live.begin()) return false;
  --next;
  return address - next->first + bytes <= next->second;
}

// Whether any of the bytes lies in there.
bool Touches(const std::map<uintptr_t, size_t>& live, const void* data, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  auto next = live.lower_bound(address + bytes);
  return next != live.begin() && std::prev(next)->first + std::prev(next)->second > address;
}

}  // namespace

struct FakeDevice::FakeStream {
  int number = 0;
  std::deque<std::function<void()>> operations;  // the first one may be under way
  bool stopping = false;
  std::thread thread;

  bool HasWorkOrStops() const { return stopping || !operations.empty(); }
};

struct FakeDevice::FakeEvent {
  int recorded = 0;
  int reached = 0;  // of these, on the stream
  absl::Time time;

  bool done() const { return recorded > 0 && reached == recorded; }
};

ForeignMemory::ForeignMemory(size_t bytes, uint8_t handle_byte)
    : bytes_(bytes), fd_(memfd_create("flashbias-fake-device", MFD_CLOEXEC)) {
  handle_.fill(handle_byte);
  if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) std::abort();
  data_ = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0));
}

ForeignMemory::~ForeignMemory() {
  munmap(data_, bytes_);
  close(fd_);
}

FakeDevice::~FakeDevice() = default;

void FakeDevice::Import(const ForeignMemory& memory, bool on_this_device) {
  absl::MutexLock lock(&mutex_);
  imported_[std::string(memory.handle_.begin(), memory.handle_.end())] = {
      .fd = memory.fd_, .bytes = memory.bytes_, .on_this_device = on_this_device};
}

int FakeDevice::open_ipc() const {
  absl::MutexLock lock(&mutex_);
  return open_ipc_;
}

int FakeDevice::opened_ipc() const {
  absl::MutexLock lock(&mutex_);
  return opened_ipc_;
}

void FakeDevice::KernelRuns(int change) {
  const bool ran = running_kernels_ > 0;
  running_kernels_ += change;
  const bool runs = running_kernels_ > 0;
  if (ran == runs) return;
  for (const auto& [handle, imported] : imported_) {
    if (imported.mapping == nullptr) continue;
    mprotect(imported.mapping, imported.bytes, runs ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
}

void FakeDevice::FailNext(Call call, ErrorCode code, bool sticky, int skip) {
  absl::MutexLock lock(&mutex_);
  injections_[call].push_back({.code = code, .sticky = sticky, .skip = skip});
}

void FakeDevice::FailNextHere(Call call, ErrorCode code, int skip) {
  absl::MutexLock lock(&mutex_);
  injections_[call].push_back(
      {.code = code, .sticky = false, .skip = skip, .only = std::this_thread::get_id()});
}

void FakeDevice::HoldKernels() {
  absl::MutexLock lock(&mutex_);
  kernels_held_ = true;
}

void FakeDevice::ReleaseKernels() {
  absl::MutexLock lock(&mutex_);
  kernels_held_ = false;
}

void FakeDevice::HoldUploads() {
  absl::MutexLock lock(&mutex_);
  uploads_held_ = true;
}

void FakeDevice::ReleaseUploads() {
  absl::MutexLock lock(&mutex_);
  uploads_held_ = false;
}

std::vector<std::string> FakeDevice::history() const {
  absl::MutexLock lock(&mutex_);
  return history_;
}

bool FakeDevice::WaitForHistory(const std::string& what, size_t count) const {
  const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return static_cast<size_t>(std::count_if(
               history_.begin(), history_.end(),
               [&](const std::string& entry) { return absl::StartsWith(entry, what); })) >= count;
  };
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(10));
}

int FakeDevice::live_objects() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(device_memory_.size() + pinned_memory_.size() +
                          registered_memory_.size()) +
         streams_and_events_ + open_ipc_;
}

int FakeDevice::pinned_calls() const {
  absl::MutexLock lock(&mutex_);
  return pinned_calls_;
}

int FakeDevice::device_calls() const {
  absl::MutexLock lock(&mutex_);
  return device_calls_;
}

size_t FakeDevice::device_bytes() const {
  absl::MutexLock lock(&mutex_);
  size_t bytes = 0;
  for (const auto& [address, size] : device_memory_) bytes += size;
  return bytes;
}

size_t FakeDevice::pinned_bytes() const {
  absl::MutexLock lock(&mutex_);
  size_t bytes = 0;
  for (const auto& [address, size] : pinned_memory_) bytes += size;
  return bytes;
}

size_t FakeDevice::registered_bytes() const {
  absl::MutexLock lock(&mutex_);
  size_t bytes = 0;
  for (const auto& [address, size] : registered_memory_) bytes += size;
  return bytes;
}

ErrorCode FakeDevice::BeginLocked(Call call) {
  if (dead_ != kSuccess) return dead_;
  std::vector<Injection>& injections = injections_[call];
  if (injections.empty()) return kSuccess;
  const std::thread::id only = injections.front().only;
  if (only != std::thread::id() && only != std::this_thread::get_id()) return kSuccess;
  if (injections.front().skip-- > 0) return kSuccess;
  const Injection injection = injections.front();
  injections.erase(injections.begin());
  if (injection.sticky) dead_ = injection.code;
  return injection.code;
}

ErrorCode FakeDevice::Use() {
  current_device = this;
  absl::MutexLock lock(&mutex_);
  return BeginLocked(Call::kUse);
}

ErrorCode FakeDevice::FreeMemory(size_t* bytes) {
  const size_t used = device_bytes();
  absl::MutexLock lock(&mutex_);
  *bytes = memory_bytes_ - used;
  return dead_;
}

ErrorCode FakeDevice::AllocateLocked(size_t bytes, std::map<uintptr_t, size_t>& live,
                                     void** memory) {
  *memory = ::operator new(bytes, kAlignment);
  live.emplace(reinterpret_cast<uintptr_t>(*memory), bytes);
  return kSuccess;
}

ErrorCode FakeDevice::AllocateDevice(size_t bytes, void** memory) {
  const size_t used = device_bytes();
  absl::MutexLock lock(&mutex_);
  ++device_calls_;
  const ErrorCode code = BeginLocked(Call::kAllocateDevice);
  if (code != kSuccess) return code;
  if (used + bytes > memory_bytes_) return kOutOfMemory;
  return AllocateLocked(bytes, device_memory_, memory);
}

void FakeDevice::FreeDevice(void* memory) {
  absl::MutexLock lock(&mutex_);
  ++device_calls_;
  device_memory_.erase(reinterpret_cast<uintptr_t>(memory));
  ::operator delete(memory, kAlignment);
}

ErrorCode FakeDevice::AllocatePinned(size_t bytes, void** memory) {
  absl::MutexLock lock(&mutex_);
  ++pinned_calls_;
  const ErrorCode code = BeginLocked(Call::kAllocatePinned);
  return code != kSuccess ? code : AllocateLocked(bytes, pinned_memory_, memory);
}

void FakeDevice::FreePinned(void* memory) {
  absl::MutexLock lock(&mutex_);
  ++pinned_calls_;
  pinned_memory_.erase(reinterpret_cast<uintptr_t>(memory));
  ::operator delete(memory, kAlignment);
}

ErrorCode FakeDevice::RegisterHost(void* memory, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  const ErrorCode code = BeginLocked(Call::kRegisterHost);
  if (code != kSuccess) return code;
  if (Touches(registered_memory_, memory, bytes)) return kAlreadyRegistered;
  registered_memory_.emplace(reinterpret_cast<uintptr_t>(memory), bytes);
  return kSuccess;
}

void FakeDevice::UnregisterHost(void* memory) {
  absl::MutexLock lock(&mutex_);
  registered_memory_.erase(reinterpret_cast<uintptr_t>(memory));
}

ErrorCode FakeDevice::OpenIpc(const void* handle, cuda::IpcMapping* mapping) {
  absl::MutexLock lock(&mutex_);
  const ErrorCode code = BeginLocked(Call::kOpenIpc);
  if (code != kSuccess) return code;
  const auto found =
      imported_.find(std::string(static_cast<const char*>(handle), cuda::kIpcHandleBytes));
  if (found == imported_.end()) return kInvalidValue;
  Imported& imported = found->second;
  if (imported.mapping != nullptr) return kAlreadyMapped;
  imported.mapping =
      mmap(nullptr, imported.bytes, running_kernels_ > 0 ? PROT_READ | PROT_WRITE : PROT_NONE,
           MAP_SHARED, imported.fd, 0);
  ++open_ipc_;
  ++opened_ipc_;
  *mapping = {.memory = imported.mapping,
              .bytes = imported.bytes,
              .on_this_device = imported.on_this_device};
  return kSuccess;
}

void FakeDevice::CloseIpc(void* memory) {
  absl::MutexLock lock(&mutex_);
  for (auto& [handle, imported] : imported_) {
    if (imported.mapping != memory) continue;
    munmap(imported.mapping, imported.bytes);
    imported.mapping = nullptr;
    --open_ipc_;
  }
}

ErrorCode FakeDevice::CreateStream(cuda::Stream** stream) {
  auto* const fake = new FakeStream;
  {
    absl::MutexLock lock(&mutex_);
    fake->number = next_stream_++;
    ++streams_and_events_;
  }
  fake->thread = std::thread([this, fake] { StreamLoop(fake); });
  *stream = reinterpret_cast<cuda::Stream*>(fake);
  return kSuccess;
}

void FakeDevice::DestroyStream(cuda::Stream* stream) {
  auto* const fake = reinterpret_cast<FakeStream*>(stream);
  {
    absl::MutexLock lock(&mutex_);
    fake->stopping = true;
    --streams_and_events_;
  }
  fake->thread.join();
  delete fake;
}

ErrorCode FakeDevice::CreateEvent(cuda::Event** event) {
  absl::MutexLock lock(&mutex_);
  ++streams_and_events_;
  *event = reinterpret_cast<cuda::Event*>(new FakeEvent);
  return kSuccess;
}

void FakeDevice::DestroyEvent(cuda::Event* event) {
  absl::MutexLock lock(&mutex_);
  --streams_and_events_;
  delete reinterpret_cast<FakeEvent*>(event);
}

ErrorCode FakeDevice::Copy(void* to, const void* from, size_t bytes, CopyKind kind,
                           cuda::Stream* stream) {
  auto* const fake = reinterpret_cast<FakeStream*>(stream);
  const bool up = kind == CopyKind::kHostToDevice;
  bool pinned;
  {
    absl::MutexLock lock(&mutex_);
    const ErrorCode code = BeginLocked(Call::kCopy);
    if (code != kSuccess) return code;
    const void* const host = up ? from : to;
    if (!Holds(device_memory_, up ? to : from, bytes)) return kInvalidValue;
    const bool registered = Holds(registered_memory_, host, bytes);
    if (!registered && Touches(registered_memory_, host, bytes)) return kInvalidValue;
    pinned = registered || Holds(pinned_memory_, host, bytes);
    Push(fake, [this, to, from, bytes, up, number = fake->number] {
      if (up) {
        absl::MutexLock held(&mutex_);
        const auto released = [&]()
                                  ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !uploads_held_; };
        mutex_.Await(absl::Condition(&released));
      }
      std::memcpy(to, from, bytes);
      absl::MutexLock done(&mutex_);
      history_.push_back(absl::StrCat(up ? "upload " : "download ", number));
    });
  }
  return pinned ? kSuccess : Wait(stream);
}

ErrorCode FakeDevice::Record(cuda::Event* event, cuda::Stream* stream) {
  auto* const fake = reinterpret_cast<FakeEvent*>(event);
  absl::MutexLock lock(&mutex_);
  const ErrorCode code = BeginLocked(Call::kRecord);
  if (code != kSuccess) return code;
  ++fake->recorded;
  Push(reinterpret_cast<FakeStream*>(stream), [this, fake] {
    absl::MutexLock done(&mutex_);
    ++fake->reached;
    fake->time = absl::Now();
  });
  return kSuccess;
}

ErrorCode FakeDevice::StreamWait(cuda::Stream* stream, cuda::Event* event) {
  const auto* const fake = reinterpret_cast<FakeEvent*>(event);
  absl::MutexLock lock(&mutex_);
  const ErrorCode code = BeginLocked(Call::kStreamWait);
  if (code != kSuccess) return code;
  Push(reinterpret_cast<FakeStream*>(stream), [this, fake, recorded = fake->recorded] {
    absl::MutexLock waiting(&mutex_);
    const auto reached = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return dead_ != kSuccess || fake->reached >= recorded;
    };
    mutex_.Await(absl::Condition(&reached));
  });
  return kSuccess;
}

ErrorCode FakeDevice::Query(cuda::Event* event) {
  absl::MutexLock lock(&mutex_);
  if (dead_ != kSuccess) return dead_;
  return reinterpret_cast<FakeEvent*>(event)->done() ? kSuccess : kNotReady;
}

ErrorCode FakeDevice::Wait(cuda::Event* event) {
  auto* const fake = reinterpret_cast<FakeEvent*>(event);
  const auto over = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return dead_ != kSuccess || fake->reached == fake->recorded;
  };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&over));
  return dead_;
}

ErrorCode FakeDevice::Wait(cuda::Stream* stream) {
  auto* const fake = reinterpret_cast<FakeStream*>(stream);
  const auto over = [&]()
                        ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return fake->operations.empty(); };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&over));
  return dead_;
}

ErrorCode FakeDevice::Elapsed(cuda::Event* from, cuda::Event* to, float* milliseconds) {
  absl::MutexLock lock(&mutex_);
  if (dead_ != kSuccess) return dead_;
  const auto* const begin = reinterpret_cast<FakeEvent*>(from);
  const auto* const end = reinterpret_cast<FakeEvent*>(to);
  if (!begin->done() || !end->done()) return kNotReady;
  *milliseconds = static_cast<float>(absl::ToDoubleMilliseconds(end->time - begin->time));
  return kSuccess;
}

ErrorCode FakeDevice::StickyError() {
  absl::MutexLock lock(&mutex_);
  return dead_;
}

std::string FakeDevice::ErrorName(ErrorCode code) const { return absl::StrCat("fakeError", code); }

std::string FakeDevice::ErrorText(ErrorCode code) const {
  return absl::StrCat("error ", code, " of a test");
}

ErrorCode FakeDevice::Launch(std::function<void()> kernel, cuda::Stream* stream) {
  auto* const fake = reinterpret_cast<FakeStream*>(stream);
  absl::MutexLock lock(&mutex_);
  if (current_device != this) return kInvalidHandle;
  const ErrorCode code = BeginLocked(Call::kLaunch);
  if (code != kSuccess) return code;
  Push(fake, [this, kernel = std::move(kernel), number = fake->number] {
    {
      absl::MutexLock held(&mutex_);
      const auto released = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !kernels_held_; };
      mutex_.Await(absl::Condition(&released));
      if (BeginLocked(Call::kKernel) != kSuccess) return;
      KernelRuns(1);
    }
    kernel();
    absl::MutexLock done(&mutex_);
    KernelRuns(-1);
    history_.push_back(absl::StrCat("kernel ", number));
  });
  return kSuccess;
}

void FakeDevice::Push(FakeStream* stream, std::function<void()> operation) {
  stream->operations.push_back(std::move(operation));
}

void FakeDevice::StreamLoop(FakeStream* stream) {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    mutex_.Await(absl::Condition(stream, &FakeStream::HasWorkOrStops));
    if (stream->operations.empty()) return;
    // A device that broke does nothing any more.
    if (dead_ == kSuccess) {
      const std::function<void()> operation = stream->operations.front();
      mutex_.Unlock();
      operation();
      mutex_.Lock();
    }
    stream->operations.pop_front();
  }
}

namespace {

// Staging and workspace hold the tile counts, zero, and nothing else.
class FakeLaunch final : public cuda::PlannedLaunch {
 public:
  FakeLaunch(FakeDevice* device, absl::Span<const AttentionProblem> problems,
             size_t workspace_bytes)
      : device_(device),
        problems_(problems.begin(), problems.end()),
        workspace_bytes_(workspace_bytes) {}

  size_t staging_bytes() const override { return problems_.size() * sizeof(cuda::TileCounts); }
  size_t workspace_bytes() const override { return workspace_bytes_; }

  absl::Status Bind(void* staging, void* workspace) override {
    std::memset(staging, 0, staging_bytes());
    staging_ = staging;
    counts_ = static_cast<cuda::TileCounts*>(workspace);
    return absl::OkStatus();
  }

  ErrorCode Upload(cuda::Stream* stream) override {
    return device_->Copy(counts_, staging_, staging_bytes(), CopyKind::kHostToDevice, stream);
  }

  ErrorCode Launch(cuda::Stream* stream) override {
    return device_->Launch(
        [problems = problems_, counts = counts_] {
          std::vector<ProblemStats> stats(problems.size());
          ReferenceBackend().Run(problems, absl::MakeSpan(stats), [](const absl::Status&) {});
          for (size_t n = 0; n < stats.size(); ++n) {
            counts[n].computed += static_cast<unsigned long long>(stats[n].tiles_computed);
            counts[n].skipped += static_cast<unsigned long long>(FakeTilesSkipped(problems[n]));
          }
        },
        stream);
  }

  const cuda::TileCounts* tile_counts() const override { return counts_; }

 private:
  FakeDevice* const device_;
  const std::vector<AttentionProblem> problems_;
  const size_t workspace_bytes_;
  void* staging_ = nullptr;
  cuda::TileCounts* counts_ = nullptr;
};

}  // namespace

int64_t FakeTilesSkipped(const AttentionProblem& problem) {
  int64_t sum = 7;
  if (problem.direction == Direction::kForward) return sum;
  for (const ProblemTensor& tensor : TensorsOf(problem)) {
    if ((tensor.tensor & (kTensorO | kTensorLse)) == 0) continue;
    const auto* const bytes = static_cast<const unsigned char*>(tensor.data);
    for (size_t n = 0; n < tensor.bytes; ++n) sum = (31 * sum + bytes[n]) % 1'000'003;
  }
  return sum;
}

uint64_t FakePlanner::GroupOf(const AttentionProblem& problem) const {
  return static_cast<uint64_t>(problem.dtype) | static_cast<uint64_t>(problem.direction) << 4 |
         static_cast<uint64_t>(problem.bias_kind) << 8 |
         static_cast<uint64_t>((problem.head_dim + 31) / 32) << 16;
}

size_t FakePlanner::WorkspaceBound(const AttentionProblem& /*problem*/) const {
  return bound_bytes_;
}

absl::StatusOr<std::unique_ptr<cuda::PlannedLaunch>> FakePlanner::Plan(
    absl::Span<const AttentionProblem> problems) const {
  for (const AttentionProblem& problem : problems) {
    if (GroupOf(problem) != GroupOf(problems[0])) return absl::InternalError("groups are mixed");
  }
  return std::make_unique<FakeLaunch>(device_, problems, workspace_bytes_ * problems.size());
}

}  // namespace flashbias::support
