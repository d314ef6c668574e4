#include "client/tensor_loans.h"

namespace flashbias::client {

grpc::Slice TensorLoans::Lend(const void* data, size_t bytes) {
  outstanding_.fetch_add(1, std::memory_order_relaxed);
  auto* const holder = new std::shared_ptr<TensorLoans>(shared_from_this());
  // The transport only reads; the interface has no const.
  return grpc::Slice(
      const_cast<void*>(data), bytes,
      [](void* held) {
        auto* const loans = static_cast<std::shared_ptr<TensorLoans>*>(held);
        (*loans)->outstanding_.fetch_sub(1, std::memory_order_release);
        delete loans;
      },
      holder);
}

}  // namespace flashbias::client
