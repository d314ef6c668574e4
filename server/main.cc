// flashbias-server: flags and wiring.
#include <malloc.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kernels/backend_factory.h"
#include "server/flags.h"
#include "server/health_check.h"
#include "server/log.h"
#include "server/program.h"

namespace flashbias::server {
namespace {

constexpr absl::Duration kHealthCheckTimeout = absl::Seconds(5);

// Messages come and go by the hundred megabytes; handing their pages back to the kernel each time
// would cost a page fault for every 4 KiB of the next one.
void TuneMalloc() {
  // NOLINTBEGIN(concurrency-mt-unsafe): no other thread exists yet
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 2'000'000'000);
  mallopt(M_TOP_PAD, 64 << 20);
  // NOLINTEND(concurrency-mt-unsafe)
}

int ReportHealth(const ProgramOptions& options) {
  const absl::StatusOr<std::string> target = HealthTarget(options);
  const absl::Status health =
      target.ok() ? CheckHealth(*target, kHealthCheckTimeout) : target.status();
  if (health.ok()) return 0;
  std::fprintf(stderr, "flashbias-server: %s\n", std::string(health.message()).c_str());
  return 1;
}

int Run() {
  const absl::StatusOr<ProgramOptions> options = OptionsFromFlags();
  if (!options.ok()) {
    Log(LogLevel::kError, "bad flags", {{"error", std::string(options.status().message())}});
    return ExitCode(options.status());
  }
  switch (options->action) {
    case Action::kServe:
      break;
    case Action::kHealthCheck:
      return ReportHealth(*options);
    case Action::kPrintConfig:
      std::fputs(ConfigText().c_str(), stdout);
      return std::fflush(stdout) == 0 ? 0 : 1;
  }
  InitLog(options->log_level, options->log_format);
  BlockSignals();

  absl::StatusOr<std::vector<std::unique_ptr<AttentionBackend>>> backends =
      CreateBackends(options->backend);
  if (!backends.ok()) {
    Log(LogLevel::kError, "no backend", {{"error", backends.status().ToString()}});
    return ExitCode(backends.status());
  }
  std::vector<std::string> devices;
  for (const auto& backend : *backends) {
    for (const std::string& device : backend->info().devices) devices.push_back(device);
  }
  const BackendInfo info = backends->front()->info();
  const ServerOptions& limits = options->server;
  Log(LogLevel::kInfo, "starting",
      {{"version", FLASHBIAS_VERSION},
       {"backend", info.name},
       {"devices", absl::StrJoin(devices, "; ")},
       {"max_concurrent_runs", info.max_concurrent_runs},
       {"listen_address", limits.listen_address},
       {"listen_unix", limits.listen_unix},
       {"metrics_address", limits.metrics_address},
       {"reflection", limits.reflection},
       {"max_queue_requests", limits.scheduler.max_queue_requests},
       {"max_queue_bytes", limits.scheduler.max_queue_bytes},
       {"max_queue_delay", limits.scheduler.batch.max_queue_delay},
       {"worthwhile_batch_bytes", limits.scheduler.batch.worthwhile_bytes},
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
       {"max_connection_age", limits.max_connection_age},
       {"max_connection_age_grace", limits.max_connection_age_grace},
       {"drain_timeout", options->drain_timeout}});

  return Serve(*options, *std::move(backends));
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
