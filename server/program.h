// Serving from start to exit code: what main does once it has options and backends.
//
// Thread-safety: for the main thread, before it starts others.
#ifndef FLASHBIAS_SERVER_PROGRAM_H_
#define FLASHBIAS_SERVER_PROGRAM_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "kernels/attention_backend.h"
#include "server/flags.h"

namespace flashbias::server {

// Of the process, for what kept it from serving. 2: the flags have to change; 1: the machine would
// not serve with them.
int ExitCode(const absl::Status& status);

// Blocks the signals that end the server in this thread and all that it starts, so that Serve gets
// them. SIGPIPE is ignored: writing to a closed connection is an error, not the end. To be called
// before anything starts a thread.
void BlockSignals();

// Serves until SIGTERM or SIGINT, or until the last device has failed, then drains. Returns the
// exit code: 0 after a signal and a complete drain; 1 where it could not serve, where requests were
// left after drain_timeout, or where no device was left. A second signal ends the process with 1 at
// once.
int Serve(const ProgramOptions& options, std::vector<std::unique_ptr<AttentionBackend>> backends);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_PROGRAM_H_
