#include "server/region_registry.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/log.h"

namespace flashbias::server {
namespace {

absl::Status SystemRefuses(const char* call, uint64_t bytes, int error) {
  return absl::ResourceExhaustedError(
      absl::StrCat("a region of ", bytes, " bytes: ", call, ": ",
                   std::error_code(error, std::generic_category()).message()));
}

absl::StatusOr<uint64_t> RandomId() {
  uint64_t id = 0;
  while (id == 0) {
    const ssize_t got = getrandom(&id, sizeof(id), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got != sizeof(id)) return absl::InternalError("the system has no random numbers");
  }
  return id;
}

absl::StatusOr<wire::UniqueFd> SealedMemory(uint64_t bytes) {
  wire::UniqueFd fd(memfd_create("flashbias-region", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return SystemRefuses("memfd_create", bytes, errno);
  const auto size = static_cast<off_t>(bytes);
  if (ftruncate(fd.get(), size) != 0) return SystemRefuses("ftruncate", bytes, errno);
  // Now, when it can still be refused: later, want of memory would be a SIGBUS.
  int allocated = 0;
  do {
    allocated = fallocate(fd.get(), 0, 0, size);
  } while (allocated != 0 && errno == EINTR);
  if (allocated != 0) return SystemRefuses("fallocate", bytes, errno);
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return SystemRefuses("F_ADD_SEALS", bytes, errno);
  }
  return fd;
}

// A mapping of a memfd.
class MadeRegion final : public Region {
 public:
  // Takes over the mapping and `held_bytes` of the ledger. `registration` is an error where the
  // memory could not be registered.
  MadeRegion(char* data, size_t size, pid_t peer, int64_t held_bytes,
             std::shared_ptr<RegionLedger> ledger, absl::StatusOr<HostRegistration> registration)
      : Region(data, size, kAnyDevice),
        peer_(peer),
        held_bytes_(held_bytes),
        ledger_(std::move(ledger)),
        registration_(std::move(registration)) {
    if (!registration_.ok()) ledger_->CountUnregistered(1);
  }
  ~MadeRegion() override {
    if (!registration_.ok()) ledger_->CountUnregistered(-1);
    // Before the memory goes.
    registration_ = HostRegistration();
    munmap(data(), size());
    ledger_->Return(peer_, held_bytes_);
  }

 private:
  const pid_t peer_;
  const int64_t held_bytes_;
  const std::shared_ptr<RegionLedger> ledger_;
  absl::StatusOr<HostRegistration> registration_;
};

// Memory of a caller's on a device.
class OpenedRegion final : public Region {
 public:
  // Takes over the memory and its size of the ledger.
  OpenedRegion(std::unique_ptr<DeviceMemory> memory, int device, wire::UniqueFd released,
               std::shared_ptr<RegionLedger> ledger)
      : Region(memory->data(), memory->size(), device),
        released_(std::move(released)),
        ledger_(std::move(ledger)),
        memory_(std::move(memory)) {}
  ~OpenedRegion() override {
    memory_ = nullptr;
    ledger_->ReturnDevice(static_cast<int64_t>(size()));
  }

 private:
  const wire::UniqueFd released_;  // goes last: it tells the caller that the rest has gone
  const std::shared_ptr<RegionLedger> ledger_;
  std::unique_ptr<DeviceMemory> memory_;
};

struct Opened {
  std::unique_ptr<DeviceMemory> memory;
  int device = kAnyDevice;
};

// Memory lies on one device; whose it is shows when it is opened.
absl::StatusOr<Opened> OpenWhereItIs(absl::Span<AttentionBackend* const> backends,
                                     const wire::OfferedMemory& memory, uint64_t bytes) {
  absl::Status error = absl::FailedPreconditionError("the server has no device");
  for (size_t n = 0; n < backends.size(); ++n) {
    absl::StatusOr<std::unique_ptr<DeviceMemory>> opened =
        backends[n]->OpenDeviceMemory(memory.handle, memory.offset, bytes, memory.device_uuid);
    if (opened.ok()) return Opened{.memory = *std::move(opened), .device = static_cast<int>(n)};
    // The device whose memory it is says what is wrong with the range.
    if (absl::IsOutOfRange(opened.status())) {
      return absl::InvalidArgumentError(opened.status().message());
    }
    if (n == 0 || absl::IsNotFound(error)) error = opened.status();
  }
  if (absl::IsNotFound(error)) {
    return absl::InvalidArgumentError(absl::StrCat(
        error.message(), "; accepted: memory of the server's devices (", backends.size(), ")"));
  }
  return error;
}

}  // namespace

absl::Status RegionLedger::CheckCountLocked() const {
  const int64_t regions = usage_.regions + usage_.device_regions;
  if (regions < limits_.max_regions) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("there are ", regions, " regions; the server's limit is ", limits_.max_regions));
}

absl::Status RegionLedger::Take(pid_t peer, int64_t bytes) {
  MutexLock lock(&mutex_);
  const auto held = peer_bytes_.find(peer);
  const int64_t peer_bytes = held == peer_bytes_.end() ? 0 : held->second;
  if (absl::Status count = CheckCountLocked(); !count.ok()) return count;
  if (bytes > limits_.max_bytes - usage_.bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("a region of ", bytes, " bytes, beside ",
                                                     usage_.bytes,
                                                     " bytes of others; the server's "
                                                     "limit is ",
                                                     limits_.max_bytes));
  }
  if (bytes > limits_.max_peer_bytes - peer_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a region of ", bytes, " bytes, beside ", peer_bytes,
        " bytes of others of this process; the limit is ", limits_.max_peer_bytes, " a process"));
  }
  ++usage_.regions;
  usage_.bytes += bytes;
  peer_bytes_[peer] += bytes;
  return absl::OkStatus();
}

void RegionLedger::Return(pid_t peer, int64_t bytes) {
  MutexLock lock(&mutex_);
  --usage_.regions;
  usage_.bytes -= bytes;
  const auto held = peer_bytes_.find(peer);
  held->second -= bytes;
  if (held->second == 0) peer_bytes_.erase(held);
}

absl::Status RegionLedger::TakeDevice(int64_t bytes) {
  MutexLock lock(&mutex_);
  if (absl::Status count = CheckCountLocked(); !count.ok()) return count;
  ++usage_.device_regions;
  usage_.device_bytes += bytes;
  return absl::OkStatus();
}

void RegionLedger::ReturnDevice(int64_t bytes) {
  MutexLock lock(&mutex_);
  --usage_.device_regions;
  usage_.device_bytes -= bytes;
}

void RegionLedger::CountUnregistered(int change) {
  MutexLock lock(&mutex_);
  usage_.unregistered += change;
}

RegionUsage RegionLedger::usage() const {
  MutexLock lock(&mutex_);
  return usage_;
}

RegionRegistry::RegionRegistry(const RegionLimits& limits, std::vector<AttentionBackend*> backends)
    : limits_(limits),
      backends_(std::move(backends)),
      ledger_(std::make_shared<RegionLedger>(limits)) {}

absl::StatusOr<RegionRegistry::NewRegion> RegionRegistry::Make(pid_t peer, uint64_t bytes) {
  if (bytes == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a region of 0 bytes; accepted: 1 to ", limits_.max_bytes));
  }
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  // Before it is rounded up, which could overflow.
  if (bytes > static_cast<uint64_t>(limits_.max_bytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a region of ", bytes, " bytes; the server's limit is ", limits_.max_bytes));
  }
  const auto held_bytes = static_cast<int64_t>((bytes + page - 1) / page * page);
  absl::Status taken = ledger_->Take(peer, held_bytes);
  if (!taken.ok()) return taken;
  absl::StatusOr<wire::UniqueFd> fd = SealedMemory(bytes);
  void* memory = MAP_FAILED;
  if (fd.ok()) {
    // Populated: a request must not pay for the first touch.
    memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd->get(), 0);
    if (memory == MAP_FAILED) fd = SystemRefuses("mmap", bytes, errno);
  }
  if (!fd.ok()) {
    ledger_->Return(peer, held_bytes);
    return fd.status();
  }
  absl::StatusOr<HostRegistration> registration = HostRegistration();
  if (!backends_.empty()) {
    registration = backends_[0]->host_allocator().Register(memory, bytes);
  }
  if (!registration.ok() && !failure_logged_.exchange(true)) {
    Log(LogLevel::kWarning, "region not registered",
        {{"status", registration.status().ToString()}});
  }
  absl::StatusOr<uint64_t> id = Add(std::make_shared<const MadeRegion>(
      static_cast<char*>(memory), bytes, peer, held_bytes, ledger_, std::move(registration)));
  if (!id.ok()) return id.status();
  return NewRegion{.id = *id, .fd = *std::move(fd)};
}

absl::StatusOr<uint64_t> RegionRegistry::Open(const wire::OfferedMemory& memory, uint64_t bytes,
                                              wire::UniqueFd released) {
  // So sums of them stay in range, and floats can be aligned.
  constexpr uint64_t kMaxBytes = uint64_t{1} << 48;
  if (bytes == 0 || bytes > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a region of ", bytes, " bytes; accepted: 1 to 2^48"));
  }
  if (memory.offset % sizeof(float) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("a region at byte ", memory.offset,
                                                   " of its allocation; accepted: multiples of ",
                                                   sizeof(float)));
  }
  const auto held_bytes = static_cast<int64_t>(bytes);
  absl::Status taken = ledger_->TakeDevice(held_bytes);
  if (!taken.ok()) return taken;
  absl::StatusOr<Opened> opened = OpenWhereItIs(backends_, memory, bytes);
  if (!opened.ok()) {
    ledger_->ReturnDevice(held_bytes);
    return opened.status();
  }
  return Add(std::make_shared<const OpenedRegion>(std::move(opened->memory), opened->device,
                                                  std::move(released), ledger_));
}

absl::StatusOr<uint64_t> RegionRegistry::Add(std::shared_ptr<const Region> region) {
  const absl::StatusOr<uint64_t> id = RandomId();
  if (!id.ok()) return id.status();
  MutexLock lock(&mutex_);
  if (!regions_.emplace(*id, std::move(region)).second) {
    return absl::InternalError("the system's random numbers repeat");
  }
  return *id;
}

std::shared_ptr<const Region> RegionRegistry::Find(uint64_t id) const {
  MutexLock lock(&mutex_);
  const auto found = regions_.find(id);
  return found == regions_.end() ? nullptr : found->second;
}

void RegionRegistry::Withdraw(uint64_t id) {
  // Unmapped outside the lock.
  std::shared_ptr<const Region> withdrawn;
  MutexLock lock(&mutex_);
  const auto found = regions_.find(id);
  if (found == regions_.end()) return;
  withdrawn = std::move(found->second);
  regions_.erase(found);
}

}  // namespace flashbias::server
