// The outputs of a problem, wherever their memory is from.
//
// Thread-safety: pure function.
#ifndef FLASHBIAS_TESTS_SUPPORT_OUTPUT_BYTES_H_
#define FLASHBIAS_TESTS_SUPPORT_OUTPUT_BYTES_H_

#include <algorithm>
#include <string>

#include "kernels/attention_problem.h"
#include "kernels/problem_tensors.h"

namespace flashbias::support {

// In the order of OwnedProblem::OutputBytes: that of the tensors' bits. REQUIRES: the outputs are
// in memory that the host may read.
inline std::string OutputBytes(const AttentionProblem& problem) {
  ProblemTensors tensors = TensorsOf(problem);
  std::sort(tensors.begin(), tensors.end(),
            [](const ProblemTensor& a, const ProblemTensor& b) { return a.tensor < b.tensor; });
  std::string bytes;
  for (const ProblemTensor& tensor : tensors) {
    if (!tensor.is_input && tensor.bytes > 0) {
      bytes.append(static_cast<const char*>(tensor.data), tensor.bytes);
    }
  }
  return bytes;
}

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_OUTPUT_BYTES_H_
