#include "kernels/cuda/pinned_pool.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"

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

}  // namespace

PinnedPool::PinnedPool(std::vector<std::shared_ptr<DeviceApi>> devices, size_t max_bytes)
    : devices_(std::move(devices)), max_bytes_(max_bytes) {}

PinnedPool::~PinnedPool() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [address, chunk] : chunks_) {
    chunk.device->Use();
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
  usage_.used_bytes += class_bytes;
  return MakeBlock(data, bytes);
}

void PinnedPool::Free(void* data, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  const size_t class_bytes = ClassOf(bytes);
  idle_[class_bytes].push_back(data);
  usage_.used_bytes -= class_bytes;
}

bool PinnedPool::Contains(const void* data, size_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(data);
  absl::MutexLock lock(&mutex_);
  auto next = chunks_.upper_bound(address);
  if (next == chunks_.begin()) return false;
  const auto& [begin, chunk] = *std::prev(next);
  const size_t offset = address - begin;
  return offset < chunk.bytes && bytes <= chunk.bytes - offset;
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
  char* const memory = static_cast<char*>(TakeFromSystemLocked(chunk_bytes));
  if (memory == nullptr) return false;
  for (size_t at = 0; at < chunk_bytes; at += class_bytes) {
    idle_[class_bytes].push_back(memory + at);
  }
  return true;
}

bool PinnedPool::MakeRoomLocked(size_t bytes) {
  if (bytes > max_bytes_) return false;
  // The largest first: fewest waits for the device. Blocks of slabs stay, they are no chunks.
  for (auto idle = idle_.rbegin(); idle != idle_.rend() && usage_.size_bytes + bytes > max_bytes_;
       ++idle) {
    auto& [class_bytes, addresses] = *idle;
    while (!addresses.empty() && usage_.size_bytes + bytes > max_bytes_) {
      const auto chunk = chunks_.find(reinterpret_cast<uintptr_t>(addresses.back()));
      if (chunk == chunks_.end() || chunk->second.bytes != class_bytes) break;
      chunk->second.device->Use();
      chunk->second.device->FreePinned(addresses.back());
      usage_.size_bytes -= class_bytes;
      chunks_.erase(chunk);
      addresses.pop_back();
    }
  }
  return usage_.size_bytes + bytes <= max_bytes_;
}

void* PinnedPool::TakeFromSystemLocked(size_t bytes) {
  for (const std::shared_ptr<DeviceApi>& device : devices_) {
    void* memory = nullptr;
    if (device->Use() == kSuccess && device->AllocatePinned(bytes, &memory) == kSuccess) {
      chunks_.emplace(reinterpret_cast<uintptr_t>(memory),
                      Chunk{.memory = memory, .bytes = bytes, .device = device.get()});
      usage_.size_bytes += bytes;
      return memory;
    }
    device->StickyError();  // else the failure would show at someone else's next call
  }
  return nullptr;
}

}  // namespace flashbias::cuda
