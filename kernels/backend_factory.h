// Makes the backend that this machine and this build can run.
#ifndef FLASHBIAS_KERNELS_BACKEND_FACTORY_H_
#define FLASHBIAS_KERNELS_BACKEND_FACTORY_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/attention_backend.h"

namespace flashbias {

struct BackendOptions {
  // "auto" (the fastest there is) or "cpu".
  std::string kind = "auto";
  // Threads of the CPU backend; 0: one per hardware thread.
  int cpu_threads = 0;
};

// INVALID_ARGUMENT when a field is out of its range or names a backend this build has not.
absl::StatusOr<std::unique_ptr<AttentionBackend>> CreateBackend(const BackendOptions& options);

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_BACKEND_FACTORY_H_
