// Owns a file descriptor.
//
// Thread-safety: a plain value. Ownership: closes it when destroyed; movable, -1 when empty.
#ifndef FLASHBIAS_WIRE_UNIQUE_FD_H_
#define FLASHBIAS_WIRE_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace flashbias::wire {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd() {
    if (fd_ >= 0) close(fd_);
  }

  int get() const { return fd_; }
  // Now the caller's to close.
  int Release() { return std::exchange(fd_, -1); }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_UNIQUE_FD_H_
