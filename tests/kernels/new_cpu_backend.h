// CPU backends for tests.
//
// Thread-safety: pure function.
#ifndef FLASHBIAS_TESTS_KERNELS_NEW_CPU_BACKEND_H_
#define FLASHBIAS_TESTS_KERNELS_NEW_CPU_BACKEND_H_

#include <cstdlib>
#include <iostream>
#include <memory>
#include <utility>

#include "kernels/backend_factory.h"

namespace flashbias {

// A new backend with so many threads; ends the test program when there is none.
inline std::unique_ptr<AttentionBackend> NewCpuBackend(int threads) {
  absl::StatusOr<std::unique_ptr<AttentionBackend>> backend =
      CreateBackend({.kind = "cpu", .cpu_threads = threads});
  if (!backend.ok()) {
    std::cerr << "no cpu backend: " << backend.status() << "\n";
    std::exit(1);
  }
  return *std::move(backend);
}

}  // namespace flashbias

#endif  // FLASHBIAS_TESTS_KERNELS_NEW_CPU_BACKEND_H_
