// CUDA backends for tests, of the kernel family that the command line names.
//
// Thread-safety: pure function.
#ifndef FLASHBIAS_TESTS_KERNELS_NEW_CUDA_BACKEND_H_
#define FLASHBIAS_TESTS_KERNELS_NEW_CUDA_BACKEND_H_

#include <cstdlib>
#include <iostream>
#include <memory>
#include <utility>

#include "tests/support/cuda_backend.h"
#include "tests/support/cuda_test_main.h"

namespace flashbias {

// A new backend that makes so many launches of every plan; ends the program when there is none.
inline std::unique_ptr<support::CudaBackend> NewCudaBackend(int launches = 1) {
  absl::StatusOr<std::unique_ptr<support::CudaBackend>> backend =
      support::CudaBackend::Create({.family = support::ChosenFamily(), .launches = launches});
  if (!backend.ok()) {
    std::cerr << "no CUDA backend: " << backend.status() << "\n";
    std::exit(1);
  }
  return *std::move(backend);
}

}  // namespace flashbias

#endif  // FLASHBIAS_TESTS_KERNELS_NEW_CUDA_BACKEND_H_
