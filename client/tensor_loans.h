// Slices over a caller's memory, and how many of them the transport has not let go of.
//
// gRPC may hold a slice after its call has ended: a deadline passes while a write waits for a
// socket that the other end does not read. Until the count is zero the memory is being read.
//
// Thread-safety: thread-safe. Ownership: shared with every slice on loan.
#ifndef FLASHBIAS_CLIENT_TENSOR_LOANS_H_
#define FLASHBIAS_CLIENT_TENSOR_LOANS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "grpcpp/support/slice.h"

namespace flashbias::client {

class TensorLoans : public std::enable_shared_from_this<TensorLoans> {
 public:
  // Without a copy. REQUIRES: `data` stays unchanged until AllReturned.
  grpc::Slice Lend(const void* data, size_t bytes);

  bool AllReturned() const { return outstanding_.load(std::memory_order_acquire) == 0; }

 private:
  std::atomic<int64_t> outstanding_{0};
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_TENSOR_LOANS_H_
