// main() of the test programs that need a CUDA device.
//
//   PROGRAM [--family=fastest|hopper|portable] [GTEST FLAGS...]
//
// Exits with kSkipped, which CTest knows, where there is no device or the family does not run on
// it. Thread-safety: ChosenFamily is constant once main has read the command line.
#ifndef FLASHBIAS_TESTS_SUPPORT_CUDA_TEST_MAIN_H_
#define FLASHBIAS_TESTS_SUPPORT_CUDA_TEST_MAIN_H_

#include "kernels/cuda/attention_plan.h"

namespace flashbias::support {

inline constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in tests/CMakeLists.txt

cuda::PlanOptions::Family ChosenFamily();

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_CUDA_TEST_MAIN_H_
