// A problem with its tensors in blocks of an allocator: as a server gives it to a backend.
//
// Not thread-safe, but disjoint problems are independent.
#ifndef FLASHBIAS_TESTS_SUPPORT_PINNED_PROBLEM_H_
#define FLASHBIAS_TESTS_SUPPORT_PINNED_PROBLEM_H_

#include <cstring>
#include <string>
#include <vector>

#include "kernels/attention_problem.h"
#include "kernels/host_memory.h"
#include "tests/support/owned_problem.h"

namespace flashbias::support {

class PinnedProblem {
 public:
  // A copy of `owned`, whose slopes, factors and sequences are used in place. REQUIRES: the
  // allocator has the memory, and both outlive this.
  PinnedProblem(HostAllocator& allocator, const OwnedProblem& owned) : problem_(owned.problem()) {
    const size_t element = SizeOf(problem_.dtype);
    const size_t kv_bytes = owned.kv_elements() * element;
    o_bytes_ = owned.q_elements() * element;
    problem_.q = Copy(allocator, problem_.q, o_bytes_);
    problem_.k = Copy(allocator, problem_.k, kv_bytes);
    problem_.v = Copy(allocator, problem_.v, kv_bytes);
    problem_.o = Copy(allocator, nullptr, o_bytes_);
    if (problem_.lse != nullptr) {
      lse_bytes_ = owned.lse_elements() * sizeof(float);
      problem_.lse = reinterpret_cast<float*>(Copy(allocator, nullptr, lse_bytes_));
    }
  }

  const AttentionProblem& problem() const { return problem_; }

  // As OwnedProblem's.
  std::string OutputBytes() const {
    return std::string(static_cast<const char*>(problem_.o), o_bytes_) +
           std::string(reinterpret_cast<const char*>(problem_.lse), lse_bytes_);
  }

 private:
  char* Copy(HostAllocator& allocator, const void* from, size_t bytes) {
    blocks_.push_back(*allocator.Allocate(bytes));
    if (from != nullptr && bytes > 0) std::memcpy(blocks_.back().data(), from, bytes);
    return blocks_.back().data();
  }

  AttentionProblem problem_;
  std::vector<HostBlock> blocks_;
  size_t o_bytes_ = 0;
  size_t lse_bytes_ = 0;
};

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_PINNED_PROBLEM_H_
