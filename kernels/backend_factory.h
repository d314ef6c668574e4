// Makes the backends that this machine and this build can run.
//
// Thread-safety: free functions, any thread.
#ifndef FLASHBIAS_KERNELS_BACKEND_FACTORY_H_
#define FLASHBIAS_KERNELS_BACKEND_FACTORY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention_backend.h"

namespace flashbias {

struct BackendOptions {
  // "cuda" (one backend a device), "cpu" (one), or "auto": cuda where this build has it and a
  // usable device is there, else cpu. A device that is there but fails is an error, not a reason
  // for cpu.
  std::string kind = "auto";
  // Threads of the CPU backend; 0: one per hardware thread.
  int cpu_threads = 0;

  // The rest is for CUDA.
  std::string cuda_devices;  // ordinals, "0,2"; empty: every usable device
  int cuda_slots = 3;        // runs in flight on each device, 1 to 16
  // Device memory for runs in flight, on each device; 0: half of what it has free at start.
  int64_t device_memory_bytes = 0;
  // Pinned host memory for requests, results and staging, shared by all devices; at least 16 MiB.
  // Taken as it is needed; what is idle for ten seconds goes back, down to 512 MiB.
  int64_t pinned_memory_bytes = int64_t{4} << 30;
};

// INVALID_ARGUMENT naming the field where one is wrong on every machine: a backend that this build
// has not, memory out of range. What depends on the backend is checked when that is made.
absl::Status Validate(const BackendOptions& options);

// One backend for each device, at least one, all of the same kind: their names, dtypes and limits
// are equal, and they share one host_allocator(), which lives as long as the last of them.
// INVALID_ARGUMENT when a field is out of its range or names a backend that this build has not;
// NOT_FOUND when kind is "cuda" and there is no usable device; INTERNAL when a device fails.
absl::StatusOr<std::vector<std::unique_ptr<AttentionBackend>>> CreateBackends(
    const BackendOptions& options);

// The first of them.
absl::StatusOr<std::unique_ptr<AttentionBackend>> CreateBackend(const BackendOptions& options);

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_BACKEND_FACTORY_H_
