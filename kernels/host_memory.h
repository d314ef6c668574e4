// Host memory in which requests wait and results are written: the one a backend's device reaches
// without another copy (pinned memory for a GPU, the heap for the CPU).
//
// Thread-safety: an allocator may be called from any thread; a block belongs to one owner at a
// time. Ownership: a block gives its memory back when it is destroyed, from any thread. An
// allocator that a shared_ptr owns lives as long as its blocks (a transport may hold an answer
// longer than anyone else lives); any other must outlive them. The same goes for registrations,
// which own no memory: what they stand for must outlive them.
#ifndef FLASHBIAS_KERNELS_HOST_MEMORY_H_
#define FLASHBIAS_KERNELS_HOST_MEMORY_H_

#include <cstddef>
#include <limits>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"

namespace flashbias {

class HostBlock;
class HostRegistration;

class HostAllocator : public std::enable_shared_from_this<HostAllocator> {
 public:
  // Of every block's start, in bytes.
  static constexpr size_t kAlignment = 256;

  virtual ~HostAllocator() = default;

  // A block of at least `bytes`, its contents undefined. RESOURCE_EXHAUSTED: beyond what the
  // allocator may hold; asking again helps once others have given theirs back.
  virtual absl::StatusOr<HostBlock> Allocate(size_t bytes) = 0;

  // Makes memory of the caller's as good as blocks of this allocator while the result lives. No two
  // registrations may overlap. An error changes nothing but that the device reaches the memory with
  // one more copy; RESOURCE_EXHAUSTED naming the bytes where the system refuses. May take as long
  // as touching all of it, and so may the end of the registration. Allocators of memory that is
  // like any other have nothing to do.
  virtual absl::StatusOr<HostRegistration> Register(void* data, size_t bytes);

  // Blocks of so many bytes together always find room when nothing else is held.
  virtual size_t max_total_bytes() const { return std::numeric_limits<size_t>::max(); }

 private:
  friend class HostBlock;
  friend class HostRegistration;
  virtual void Free(void* data, size_t bytes) = 0;
  virtual void Unregister(void* /*data*/) {}

 protected:
  HostBlock MakeBlock(void* data, size_t bytes);
  HostRegistration MakeRegistration(void* data);
};

// Owns one allocation; movable, empty when default-constructed or moved from.
class HostBlock {
 public:
  HostBlock() = default;
  HostBlock(HostBlock&& other) noexcept { *this = std::move(other); }
  HostBlock& operator=(HostBlock&& other) noexcept {
    std::swap(allocator_, other.allocator_);
    std::swap(keeps_alive_, other.keeps_alive_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~HostBlock() {
    if (data_ != nullptr) allocator_->Free(data_, bytes_);
  }

  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return bytes_; }

 private:
  friend class HostAllocator;
  HostBlock(HostAllocator* allocator, std::shared_ptr<HostAllocator> keeps_alive, void* data,
            size_t bytes)
      : allocator_(allocator), keeps_alive_(std::move(keeps_alive)), data_(data), bytes_(bytes) {}

  HostAllocator* allocator_ = nullptr;
  std::shared_ptr<HostAllocator> keeps_alive_;  // the same, where it is shared
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Stands for memory that an allocator has taken in; movable, empty when default-constructed or
// moved from.
class HostRegistration {
 public:
  HostRegistration() = default;
  HostRegistration(HostRegistration&& other) noexcept { *this = std::move(other); }
  HostRegistration& operator=(HostRegistration&& other) noexcept {
    std::swap(allocator_, other.allocator_);
    std::swap(keeps_alive_, other.keeps_alive_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~HostRegistration() {
    if (data_ != nullptr) allocator_->Unregister(data_);
  }

 private:
  friend class HostAllocator;
  HostRegistration(HostAllocator* allocator, std::shared_ptr<HostAllocator> keeps_alive, void* data)
      : allocator_(allocator), keeps_alive_(std::move(keeps_alive)), data_(data) {}

  HostAllocator* allocator_ = nullptr;
  std::shared_ptr<HostAllocator> keeps_alive_;  // the same, where it is shared
  void* data_ = nullptr;
};

inline HostBlock HostAllocator::MakeBlock(void* data, size_t bytes) {
  return HostBlock(this, weak_from_this().lock(), data, bytes);
}

inline HostRegistration HostAllocator::MakeRegistration(void* data) {
  return HostRegistration(this, weak_from_this().lock(), data);
}

inline absl::StatusOr<HostRegistration> HostAllocator::Register(void* /*data*/, size_t /*bytes*/) {
  return HostRegistration();
}

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_HOST_MEMORY_H_
