// The service on the machine's GPUs in a process of its own: a CUDA IPC handle cannot be opened by
// the process that exported it.
//
// Thread-safety: not thread-safe. The process ends with its owner, however that ends.
#ifndef FLASHBIAS_TESTS_BENCH_GPU_SERVER_PROCESS_H_
#define FLASHBIAS_TESTS_BENCH_GPU_SERVER_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "wire/unique_fd.h"

namespace flashbias::bench {

// The flag of this program that makes it such a server.
inline constexpr char kServeFlag[] = "serve_gpu_on";

class GpuServerProcess {
 public:
  // Returns once it serves on `unix_path`. UNAVAILABLE: it does not; it has said why on stderr.
  static absl::StatusOr<std::unique_ptr<GpuServerProcess>> Start(const std::string& unix_path);
  GpuServerProcess(const GpuServerProcess&) = delete;
  GpuServerProcess& operator=(const GpuServerProcess&) = delete;
  ~GpuServerProcess();

 private:
  GpuServerProcess(pid_t pid, wire::UniqueFd input) : pid_(pid), input_(std::move(input)) {}

  const pid_t pid_;
  wire::UniqueFd input_;  // the process ends when this is closed
};

// What that process does: says "ready" on stdout, serves until stdin ends.
absl::Status ServeGpuUntilStdinEnds(const std::string& unix_path);

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_GPU_SERVER_PROCESS_H_
