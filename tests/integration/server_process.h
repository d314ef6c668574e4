// flashbias-server as a child process on free loopback ports and a unix socket, and what it holds
// of the system.
//
// The program is that of ProgramPath. FLASHBIAS_TEST_BACKEND in the environment is its
// --backend: "cpu" where it is not set.
//
// Thread-safety: const methods from any thread. The destructor kills the process.
#ifndef FLASHBIAS_TESTS_INTEGRATION_SERVER_PROCESS_H_
#define FLASHBIAS_TESTS_INTEGRATION_SERVER_PROCESS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/integration/child_process.h"
#include "tests/integration/http_get.h"

namespace flashbias::integration {

// A program beside this one, or among the tools of the bundle that this one is in.
std::string ProgramPath(const std::string& name);
// "cpu" or "cuda".
std::string TestBackend();

class ServerProcess {
 public:
  // Serving when this returns. `flags` come beside backend and addresses. Errors: it did not serve
  // within 60 s; what it printed is in the message.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(
      const std::vector<std::string>& flags = {});
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;
  ~ServerProcess();

  std::string tcp_target() const;
  std::string unix_target() const;
  // Files that go with the server.
  std::string Path(const std::string& name) const;
  std::string Output() const { return child_->Output(); }
  absl::StatusOr<Samples> Metrics() const { return Scrape(metrics_port_); }

  // What /proc knows of it; -1: the process is gone.
  int64_t ResidentBytes() const { return StatusBytes("VmRSS:"); }
  int64_t PeakResidentBytes() const { return StatusBytes("VmHWM:"); }
  int OpenDescriptors() const;
  int MappedRegions() const;  // of shared memory

  // OK once no call is in flight and nothing is queued, reserved, pinned, shared or held on a
  // device, in at most `patience`; else DEADLINE_EXCEEDED naming the gauges that are not zero.
  absl::Status AwaitNothingHeld(absl::Duration patience) const;

 private:
  explicit ServerProcess(std::string directory) : directory_(std::move(directory)) {}

  absl::Status AwaitPorts();
  int64_t StatusBytes(const std::string& name) const;

  const std::string directory_;
  std::unique_ptr<ChildProcess> child_;
  int port_ = 0;
  int metrics_port_ = 0;
};

}  // namespace flashbias::integration

#endif  // FLASHBIAS_TESTS_INTEGRATION_SERVER_PROCESS_H_
