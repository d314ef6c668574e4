// A problem's tensors in device memory.
#ifndef FLASHBIAS_TESTS_BENCH_DEVICE_PROBLEM_H_
#define FLASHBIAS_TESTS_BENCH_DEVICE_PROBLEM_H_

#include <vector>

#include "kernels/attention_problem.h"
#include "kernels/problem_tensors.h"
#include "tests/bench/cuda_memory.h"

namespace flashbias::bench {

class DeviceProblem {
 public:
  // Copies the inputs; outputs, and inputs whose pointer is null, hold NaN. `host` must stay valid.
  explicit DeviceProblem(const AttentionProblem& host);

  // With device pointers.
  const AttentionProblem& problem() const { return problem_; }

  // Null, or no bytes, where the problem has no such tensor.
  void* data(TensorSet tensor) const;
  std::vector<char> Download(TensorSet tensor) const;

 private:
  ProblemTensors tensors_;
  std::vector<DeviceMemory> memory_;  // [tensors_]
  AttentionProblem problem_;
};

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_DEVICE_PROBLEM_H_
