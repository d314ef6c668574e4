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

}  // namespace

absl::Status RegionLedger::Take(pid_t peer, int64_t bytes) {
  MutexLock lock(&mutex_);
  const auto held = peer_bytes_.find(peer);
  const int64_t peer_bytes = held == peer_bytes_.end() ? 0 : held->second;
  if (usage_.regions >= limits_.max_regions) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "there are ", usage_.regions, " regions; the server's limit is ", limits_.max_regions));
  }
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

void RegionLedger::CountUnregistered(int change) {
  MutexLock lock(&mutex_);
  usage_.unregistered += change;
}

RegionUsage RegionLedger::usage() const {
  MutexLock lock(&mutex_);
  return usage_;
}

Region::Region(uint64_t id, char* data, size_t size, pid_t peer, int64_t held_bytes,
               std::shared_ptr<RegionLedger> ledger, absl::StatusOr<HostRegistration> registration)
    : id_(id),
      data_(data),
      size_(size),
      peer_(peer),
      held_bytes_(held_bytes),
      ledger_(std::move(ledger)),
      registration_(std::move(registration)) {
  if (!registration_.ok()) ledger_->CountUnregistered(1);
}

Region::~Region() {
  if (!registration_.ok()) ledger_->CountUnregistered(-1);
  // Before the memory goes.
  registration_ = HostRegistration();
  munmap(data_, size_);
  ledger_->Return(peer_, held_bytes_);
}

RegionRegistry::RegionRegistry(const RegionLimits& limits, HostAllocator* allocator)
    : limits_(limits), allocator_(allocator), ledger_(std::make_shared<RegionLedger>(limits)) {}

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
  absl::StatusOr<uint64_t> id = RandomId();
  absl::StatusOr<wire::UniqueFd> fd = id.ok() ? SealedMemory(bytes) : id.status();
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
  if (allocator_ != nullptr) registration = allocator_->Register(memory, bytes);
  if (!registration.ok() && !failure_logged_.exchange(true)) {
    Log(LogLevel::kWarning, "region not registered",
        {{"status", registration.status().ToString()}});
  }
  auto region = std::make_shared<const Region>(*id, static_cast<char*>(memory), bytes, peer,
                                               held_bytes, ledger_, std::move(registration));
  MutexLock lock(&mutex_);
  if (!regions_.emplace(*id, std::move(region)).second) {
    return absl::InternalError("the system's random numbers repeat");
  }
  return NewRegion{.id = *id, .fd = *std::move(fd)};
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
