// The portable production backend: SIMD kernels (Highway, dispatched at run time) on a oneTBB
// arena.
//
// Serves float16, bfloat16 and float32, computing in float32. Results are bitwise the same for any
// number of threads and for any composition of a batch. Thread-safe as AttentionBackend says.
#ifndef FLASHBIAS_KERNELS_CPU_CPU_BACKEND_H_
#define FLASHBIAS_KERNELS_CPU_CPU_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/attention_backend.h"

namespace flashbias {

struct CpuBackendOptions {
  // Threads that compute, 0 to 1024. 0: one per hardware thread; more than that bring nothing.
  int num_threads = 0;
};

absl::StatusOr<std::unique_ptr<AttentionBackend>> CreateCpuBackend(
    const CpuBackendOptions& options);

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_CPU_CPU_BACKEND_H_
