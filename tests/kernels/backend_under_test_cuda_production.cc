#include <cstdlib>
#include <iostream>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_devices.h"
#include "tests/kernels/backend_under_test.h"
#include "tests/support/cuda_test_main.h"

namespace flashbias {

// The backend that the server runs, on device 0; everything that may be skipped is, or small cases
// would never try it.
AttentionBackend& BackendUnderTest() {
  static AttentionBackend* const backend = [] {
    auto backends = cuda::CreateCudaBackends(
        {.devices = {0},
         .backend = {.device_memory_bytes = size_t{4} << 30},
         .plan = {.family = support::ChosenFamily(),
                  .skipping = cuda::PlanOptions::Skipping::kWhereverPossible}});
    if (!backends.ok()) {
      std::cerr << "no CUDA backend: " << backends.status() << "\n";
      std::exit(1);  // NOLINT(concurrency-mt-unsafe)
    }
    return backends->front().release();
  }();
  return *backend;
}

}  // namespace flashbias
