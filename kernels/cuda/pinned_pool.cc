#include "kernels/cuda/pinned_pool.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace flashbias::cuda {
namespace {

constexpr size_t kSmallestClass = 4096;
constexpr size_t kLargestSlabClass = size_t{256} << 10;
constexpr size_t kSlabBytes = size_t{2} << 20;
// Far beyond any machine's memory; keeps the arithmetic of classes in range.
constexpr size_t kMaxBytes = size_t{1} << 50;

size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// Four classes to a doubling: at most a quarter is lost. All are multiples of 1 KiB.
size_t ClassOf(size_t bytes) {
  if (bytes <= kSmallestClass) return kSmallestClass;
  return RoundUp(bytes, std::bit_floor(bytes - 1) / 4);
}

// Whether all `bytes` from `data` on lie in one of `ranges`, which have their begin as key.
template <typename Range>
bool Holds(const std::map<uintptr_t, Range>& ranges, const void* data, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  auto next = ranges.upper_bound(address);
  if (next == ranges.begin()) return false;
  const auto& [begin, range] = *std::prev(next);
  const size_t offset = address - begin;
  return offset < range.bytes && bytes <= range.bytes - offset;
}

}  // namespace

PinnedPool::PinnedPool(std::vector<std::shared_ptr<DeviceApi>> devices, size_t max_bytes)
    : devices_(std::move(devices)), max_bytes_(max_bytes) {}

PinnedPool::~PinnedPool() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [address, chunk] : chunks_) {
    chunk.device->FreePinned(chunk.memory);
  }
}

absl::StatusOr<HostBlock> PinnedPool::Allocate(size_t bytes) {
  absl::MutexLock lock(&mutex_);
  const size_t class_bytes = bytes <= kMaxBytes ? ClassOf(bytes) : bytes;
  std::vector<void*>* idle = bytes <= kMaxBytes ? &idle_[class_bytes] : nullptr;
  if (idle == nullptr || (idle->empty() && !GrowLocked(class_bytes))) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no pinned memory for ", bytes, " bytes: ", usage_.used_bytes, " of ",
                     usage_.size_bytes, " bytes are in use, the limit is ", max_bytes_));
  }
  void* const data = idle->back();
  idle->pop_back();
  ++ChunkOfLocked(data).used_blocks;
  usage_.used_bytes += class_bytes;
  return MakeBlock(data, bytes);
}

void PinnedPool::Free(void* data, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  const size_t class_bytes = ClassOf(bytes);
  idle_[class_bytes].push_back(data);
  Chunk& chunk = ChunkOfLocked(data);
  if (--chunk.used_blocks == 0) chunk.idle_since = absl::Now();
  usage_.used_bytes -= class_bytes;
}

absl::StatusOr<HostRegistration> PinnedPool::Register(void* data, size_t bytes) {
  ErrorCode error = kSuccess;
  DeviceApi* asked = nullptr;
  // Not under the lock: runs in flight look memory up, and this takes long.
  for (const std::shared_ptr<DeviceApi>& device : devices_) {
    asked = device.get();
    error = device->RegisterHost(data, bytes);
    if (error == kSuccess) break;
  }
  if (asked == nullptr || error != kSuccess) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot register ", bytes, " bytes of host memory: ",
        asked == nullptr ? "there is no device"
                         : absl::StrCat(asked->ErrorName(error), ", ", asked->ErrorText(error))));
  }
  absl::MutexLock lock(&mutex_);
  registered_.emplace(reinterpret_cast<uintptr_t>(data),
                      Registered{.bytes = bytes, .device = asked});
  usage_.registered_bytes += bytes;
  return MakeRegistration(data);
}

void PinnedPool::Unregister(void* data) {
  DeviceApi* device = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = registered_.find(reinterpret_cast<uintptr_t>(data));
    device = found->second.device;
    usage_.registered_bytes -= found->second.bytes;
    registered_.erase(found);
  }
  device->UnregisterHost(data);
}

bool PinnedPool::Contains(const void* data, size_t bytes) const {
  absl::MutexLock lock(&mutex_);
  return Holds(chunks_, data, bytes) || Holds(registered_, data, bytes);
}

PinnedPool::Usage PinnedPool::usage() const {
  absl::MutexLock lock(&mutex_);
  return usage_;
}

bool PinnedPool::GrowLocked(size_t class_bytes) {
  size_t chunk_bytes = class_bytes;
  if (class_bytes <= kLargestSlabClass && usage_.size_bytes + kSlabBytes <= max_bytes_) {
    chunk_bytes = kSlabBytes / class_bytes * class_bytes;
  }
  if (!MakeRoomLocked(chunk_bytes)) return false;
  char* const memory = static_cast<char*>(TakeFromSystemLocked(chunk_bytes, class_bytes));
  if (memory == nullptr) return false;
  for (size_t at = 0; at < chunk_bytes; at += class_bytes) {
    idle_[class_bytes].push_back(memory + at);
  }
  return true;
}

PinnedPool::Chunk& PinnedPool::ChunkOfLocked(const void* block) {
  return std::prev(chunks_.upper_bound(reinterpret_cast<uintptr_t>(block)))->second;
}

void PinnedPool::ReleaseLocked(std::map<uintptr_t, Chunk>::iterator chunk) {
  const Chunk released = chunk->second;
  ForgetLocked(chunk);
  released.device->FreePinned(released.memory);
}

void PinnedPool::ForgetLocked(std::map<uintptr_t, Chunk>::iterator chunk) {
  const uintptr_t begin = chunk->first;
  const Chunk& released = chunk->second;
  std::erase_if(idle_[released.class_bytes], [&](const void* block) {
    return reinterpret_cast<uintptr_t>(block) - begin < released.bytes;
  });
  usage_.size_bytes -= released.bytes;
  chunks_.erase(chunk);
}

bool PinnedPool::MakeRoomLocked(size_t bytes) {
  if (bytes > max_bytes_) return false;
  if (usage_.size_bytes + bytes <= max_bytes_) return true;
  for (const uintptr_t begin : IdleChunksLocked()) {
    ReleaseLocked(chunks_.find(begin));
    if (usage_.size_bytes + bytes <= max_bytes_) return true;
  }
  return false;
}

std::vector<uintptr_t> PinnedPool::IdleChunksLocked() const {
  std::vector<std::pair<size_t, uintptr_t>> idle;
  for (const auto& [begin, chunk] : chunks_) {
    const bool is_slab = chunk.bytes > chunk.class_bytes;
    if (chunk.used_blocks == 0) idle.emplace_back(is_slab ? 0 : chunk.bytes, begin);
  }
  std::sort(idle.rbegin(), idle.rend());
  std::vector<uintptr_t> begins;
  begins.reserve(idle.size());
  for (const auto& [order, begin] : idle) begins.push_back(begin);
  return begins;
}

void PinnedPool::ReleaseIdle(absl::Time unused_since, size_t kept_bytes) {
  // Freed without the mutex, which everyone who decodes or plans takes: it takes long.
  std::vector<Chunk> released;
  {
    absl::MutexLock lock(&mutex_);
    for (const uintptr_t begin : IdleChunksLocked()) {
      if (usage_.size_bytes - usage_.used_bytes <= kept_bytes) break;
      const auto chunk = chunks_.find(begin);
      if (chunk->second.idle_since >= unused_since) continue;
      released.push_back(chunk->second);
      ForgetLocked(chunk);
    }
  }
  for (const Chunk& chunk : released) chunk.device->FreePinned(chunk.memory);
}

void* PinnedPool::TakeFromSystemLocked(size_t bytes, size_t class_bytes) {
  for (const std::shared_ptr<DeviceApi>& device : devices_) {
    void* memory = nullptr;
    if (device->AllocatePinned(bytes, &memory) == kSuccess) {
      chunks_.emplace(reinterpret_cast<uintptr_t>(memory), Chunk{.memory = memory,
                                                                 .bytes = bytes,
                                                                 .device = device.get(),
                                                                 .class_bytes = class_bytes,
                                                                 .used_blocks = 0,
                                                                 .idle_since = absl::Now()});
      usage_.size_bytes += bytes;
      return memory;
    }
  }
  return nullptr;
}

}  // namespace flashbias::cuda
