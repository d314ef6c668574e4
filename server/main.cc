// flashbias-server: flags and wiring.
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "kernels/backend_factory.h"
#include "server/flags.h"
#include "server/log.h"
#include "server/server.h"

namespace flashbias::server {
namespace {

// Messages come and go by the hundred megabytes; handing their pages back to the kernel each time
// would cost a page fault for every 4 KiB of the next one.
void TuneMalloc() {
  // NOLINTBEGIN(concurrency-mt-unsafe): no other thread exists yet
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 2'000'000'000);
  mallopt(M_TOP_PAD, 64 << 20);
  // NOLINTEND(concurrency-mt-unsafe)
}

// Blocks the signals that end the server in this thread and all that it starts, so that sigwait
// gets them. SIGPIPE is ignored: writing to a closed connection is an error, not the end.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
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

// 2: the flags have to change; 1: the machine would not serve with them.
int ExitCode(const absl::Status& status) { return absl::IsInvalidArgument(status) ? 2 : 1; }

int Run() {
  const absl::StatusOr<ProgramOptions> options = OptionsFromFlags();
  if (!options.ok()) {
    Log(LogLevel::kError, "bad flags", {{"error", std::string(options.status().message())}});
    return ExitCode(options.status());
  }
  InitLog(options->log_level, options->log_format);
  const sigset_t signals = BlockSignals();

  absl::StatusOr<std::unique_ptr<AttentionBackend>> backend = CreateBackend(options->backend);
  if (!backend.ok()) {
    Log(LogLevel::kError, "no backend", {{"error", backend.status().ToString()}});
    return ExitCode(backend.status());
  }
  const BackendInfo info = (*backend)->info();
  const ServerOptions& limits = options->server;
  Log(LogLevel::kInfo, "starting",
      {{"version", FLASHBIAS_VERSION},
       {"backend", info.name},
       {"devices", absl::StrJoin(info.devices, "; ")},
       {"max_concurrent_runs", info.max_concurrent_runs},
       {"listen_address", limits.listen_address},
       {"listen_unix", limits.listen_unix},
       {"metrics_address", limits.metrics_address},
       {"reflection", limits.reflection},
       {"max_queue_requests", limits.scheduler.max_queue_requests},
       {"max_queue_bytes", limits.scheduler.max_queue_bytes},
       {"max_queue_delay", limits.scheduler.batch.max_queue_delay},
       {"max_batch_work", limits.scheduler.batch.max_work},
       {"max_batch_bytes", limits.scheduler.batch.max_bytes},
       {"max_batch_requests", limits.scheduler.batch.max_requests},
       {"max_message_bytes", limits.max_message_bytes},
       {"max_sequences", limits.max_sequences},
       {"copy_threads", limits.copy_threads},
       {"max_concurrent_streams", limits.max_concurrent_streams},
       {"keepalive_time", limits.keepalive_time},
       {"keepalive_timeout", limits.keepalive_timeout},
       {"min_ping_interval", limits.min_ping_interval},
       {"drain_timeout", options->drain_timeout}});

  absl::StatusOr<std::unique_ptr<Server>> server = Server::Create(limits, *std::move(backend));
  if (!server.ok()) {
    Log(LogLevel::kError, "cannot serve", {{"error", server.status().ToString()}});
    return ExitCode(server.status());
  }
  if (!options->port_file.empty()) {
    const std::string error = WritePorts(options->port_file, **server);
    if (!error.empty()) {
      Log(LogLevel::kError, "cannot write the port file",
          {{"port_file", options->port_file}, {"error", error}});
      return 1;
    }
  }
  Log(LogLevel::kInfo, "serving",
      {{"port", (*server)->port()}, {"metrics_port", (*server)->metrics_port()}});

  const int signal = WaitForSignal(signals);
  Log(LogLevel::kInfo, "draining", {{"signal", signal}, {"drain_timeout", options->drain_timeout}});
  std::thread([signals] {
    WaitForSignal(signals);
    Log(LogLevel::kWarning, "cut short by a second signal");
    ExitNow();
  }).detach();
  if (!(*server)->Shutdown(options->drain_timeout)) {
    Log(LogLevel::kWarning, "cut short: requests were left after drain_timeout");
    ExitNow();
  }
  Log(LogLevel::kInfo, "drained");
  FlushLog();
  return 0;
}

}  // namespace
}  // namespace flashbias::server

int main(int argc, char** argv) {
  // abseil's own --help ends with exit code 1.
  for (int n = 1; n < argc; ++n) {
    const absl::string_view argument = argv[n];
    if (argument == "--help" || argument == "-help") {
      std::fputs(flashbias::server::HelpText().c_str(), stdout);
      return 0;
    }
  }
  absl::SetProgramUsageMessage("Serves attention with ALiBi or low-rank bias over gRPC.");
  absl::FlagsUsageConfig usage;
  usage.contains_help_flags = flashbias::server::IsServerFlagFile;
  usage.contains_helpshort_flags = flashbias::server::IsServerFlagFile;
  usage.contains_helppackage_flags = flashbias::server::IsServerFlagFile;
  usage.version_string = [] { return absl::StrCat("flashbias-server ", FLASHBIAS_VERSION, "\n"); };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    std::fprintf(stderr, "flashbias-server: '%s' is no flag; see --help\n", rest[1]);
    return 2;
  }
  // gRPC's own locking trips the detector that some distributions build abseil with.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  flashbias::server::TuneMalloc();
  return flashbias::server::Run();
}
