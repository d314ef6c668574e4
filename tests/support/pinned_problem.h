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
#include "kernels/problem_tensors.h"
#include "tests/support/output_bytes.h"
#include "tests/support/owned_problem.h"

namespace flashbias::support {

class PinnedProblem {
 public:
  // A copy of `owned`, whose slopes and sequences are used in place. REQUIRES: the allocator has
  // the memory, and both outlive this.
  PinnedProblem(HostAllocator& allocator, const OwnedProblem& owned) : problem_(owned.problem()) {
    for (const ProblemTensor& tensor : TensorsOf(owned.problem())) {
      blocks_.push_back(*allocator.Allocate(tensor.bytes));
      char* const data = blocks_.back().data();
      if (tensor.is_input && tensor.bytes > 0) std::memcpy(data, tensor.data, tensor.bytes);
      PointAt(tensor.tensor, data, &problem_);
    }
  }

  const AttentionProblem& problem() const { return problem_; }

  // As OwnedProblem's.
  std::string OutputBytes() const { return support::OutputBytes(problem_); }

 private:
  AttentionProblem problem_;
  std::vector<HostBlock> blocks_;
};

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_PINNED_PROBLEM_H_
