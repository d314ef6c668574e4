#include "server/program.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/log.h"
#include "server/server.h"

namespace flashbias::server {
namespace {

// Those that end the server.
sigset_t EndingSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

int WaitForSignal(const sigset_t& signals) {
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
  return signal;
}

// Ends the process without destructors: the backend may still be writing to memory of ours.
[[noreturn]] void ExitNow() {
  FlushLog();
  _exit(1);
}

// Renamed into place, so that whoever waits for the file never reads half of it. The reason where
// it failed, "" where it did not.
std::string WritePorts(const std::string& path, const Server& server) {
  errno = 0;
  const std::string partial = path + ".partial";
  std::ofstream file(partial);
  file << "grpc_port=" << server.port() << "\nmetrics_port=" << server.metrics_port() << "\n";
  file.close();
  if (file.good() && std::rename(partial.c_str(), path.c_str()) == 0) return "";
  return std::error_code(errno, std::generic_category()).message();
}

}  // namespace

int ExitCode(const absl::Status& status) { return absl::IsInvalidArgument(status) ? 2 : 1; }

void BlockSignals() {
  const sigset_t signals = EndingSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

int Serve(const ProgramOptions& options, std::vector<std::unique_ptr<AttentionBackend>> backends) {
  // The last device's failure ends the process as SIGTERM does, but for the exit code.
  std::atomic<bool> no_device = false;
  std::atomic<bool> ending = false;
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Create(options.server, std::move(backends), [&no_device, &ending] {
        no_device = true;
        // A signal while the server drains would cut it short.
        if (!ending.exchange(true)) kill(getpid(), SIGTERM);
      });
  if (!server.ok()) {
    Log(LogLevel::kError, "cannot serve", {{"error", server.status().ToString()}});
    return ExitCode(server.status());
  }
  if (!options.port_file.empty()) {
    const std::string error = WritePorts(options.port_file, **server);
    if (!error.empty()) {
      Log(LogLevel::kError, "cannot write the port file",
          {{"port_file", options.port_file}, {"error", error}});
      return 1;
    }
  }
  Log(LogLevel::kInfo, "serving",
      {{"port", (*server)->port()}, {"metrics_port", (*server)->metrics_port()}});

  const sigset_t signals = EndingSignals();
  const int signal = WaitForSignal(signals);
  // Where the device came first, the first signal from outside is no second one.
  const bool one_more = ending.exchange(true) && no_device;
  Log(LogLevel::kInfo, "draining", {{"signal", signal}, {"drain_timeout", options.drain_timeout}});
  std::thread([signals, one_more] {
    if (one_more) WaitForSignal(signals);
    WaitForSignal(signals);
    Log(LogLevel::kWarning, "cut short by a second signal");
    ExitNow();
  }).detach();
  if (!(*server)->Shutdown(options.drain_timeout)) {
    Log(LogLevel::kWarning, "cut short: requests were left after drain_timeout");
    ExitNow();
  }
  Log(LogLevel::kInfo, "drained");
  FlushLog();
  return no_device ? 1 : 0;
}

}  // namespace flashbias::server
