// A backend that computes with the fp64 reference: slow, sure, and without any skipping.
//
// It serves tests of whatever stands around a backend. Run computes on the caller's thread and
// calls `done` before it returns. Stats: each (row, head) that sees a key counts as one computed
// tile. Thread-safe.
#ifndef FLASHBIAS_TESTS_SUPPORT_REFERENCE_BACKEND_H_
#define FLASHBIAS_TESTS_SUPPORT_REFERENCE_BACKEND_H_

#include "kernels/attention_backend.h"
#include "kernels/heap_allocator.h"

namespace flashbias::support {

class ReferenceBackend : public AttentionBackend {
 public:
  ReferenceBackend();

  const BackendInfo& info() const override { return info_; }
  HostAllocator& host_allocator() override { return host_allocator_; }
  void Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
           Done done) override;

 private:
  BackendInfo info_;
  HeapAllocator host_allocator_;
};

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_REFERENCE_BACKEND_H_
