// A program run as a child: the real binaries, end to end.
//
// Thread-safety: not thread-safe. The destructor kills what still runs.
#ifndef FLASHBIAS_TESTS_INTEGRATION_CHILD_PROCESS_H_
#define FLASHBIAS_TESTS_INTEGRATION_CHILD_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace flashbias::integration {

class ChildProcess {
 public:
  // Starts `program` with its stdout and stderr in `output_path`.
  static absl::StatusOr<ChildProcess> Start(const std::string& program,
                                            const std::vector<std::string>& arguments,
                                            const std::string& output_path);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  ~ChildProcess();

  pid_t pid() const { return pid_; }  // 0: it was waited for
  void Signal(int signal) const;
  bool Running();

  // The exit code, 128 + the signal that ended it, or DEADLINE_EXCEEDED.
  absl::StatusOr<int> Wait(absl::Duration timeout);

  // What it has printed up to now.
  std::string Output() const;

 private:
  ChildProcess(pid_t pid, std::string output_path);

  pid_t pid_;  // 0: it was waited for
  int exit_code_ = 0;
  std::string output_path_;
};

}  // namespace flashbias::integration

#endif  // FLASHBIAS_TESTS_INTEGRATION_CHILD_PROCESS_H_
