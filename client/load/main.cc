// flashbias-load: sends attention requests, in an open or a closed loop, and reports. Wiring only.
#include <malloc.h>

#include <atomic>
#include <csignal>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/flags/command_line.h"
#include "client/flags/connection_flags.h"
#include "client/flags/output_file.h"
#include "client/load/load_command.h"
#include "client/load/load_driver.h"
#include "client/load/report/load_report.h"
#include "client/load/report/report_csv.h"
#include "client/load/report/report_hdr.h"
#include "client/load/report/report_html.h"
#include "client/load/report/report_json.h"
#include "client/load/report/report_table.h"
#include "client/load/report/run_figures.h"
#include "client/load/requests/mix_caller.h"
#include "client/load/requests/request_mix.h"
#include "client/load/requests/verifier.h"

namespace flashbias::client {
namespace {

std::atomic<bool> g_stop{false};
static_assert(std::atomic<bool>::is_always_lock_free, "it is set in a signal handler");

void OnSignal(int signal) {
  g_stop.store(true);
  // The second one ends the program.
  std::signal(signal, SIG_DFL);
}

// The files that reports go to. A report that cannot be written is not measured: they are opened
// before the load.
class ReportFiles {
 public:
  static absl::StatusOr<ReportFiles> Open(const LoadOutputs& outputs) {
    ReportFiles files;
    for (const auto& [path, file] :
         {std::pair{&outputs.json, &files.json_}, std::pair{&outputs.csv, &files.csv_},
          std::pair{&outputs.hdr, &files.hdr_}, std::pair{&outputs.html, &files.html_}}) {
      if (path->empty() || *path == "-") continue;  // "-" only of JSON
      absl::StatusOr<OutputFile> opened = OutputFile::Open(*path);
      if (!opened.ok()) return opened.status();
      file->emplace(*std::move(opened));
    }
    return files;
  }

  absl::Status Write(const LoadReport& report) {
    absl::Status status;
    const auto write = [&](std::optional<OutputFile>& file, auto format) {
      if (file.has_value()) status.Update(file->Write({format()}));
    };
    write(json_, [&] { return FormatJson(report); });
    write(csv_, [&] { return FormatCsv(report); });
    write(hdr_, [&] { return FormatHdrPercentiles(LatencyOf(report)); });
    write(html_, [&] { return FormatHtml(report); });
    return status;
  }

 private:
  // Of a sweep: at the best rate; empty where there is none.
  static LatencyHistogram LatencyOf(const LoadReport& report) {
    if (report.run.has_value()) return report.run->result.latency;
    if (!report.sweep->best_rate.has_value()) return LatencyHistogram();
    return BestStep(*report.sweep)->result.latency;
  }

  std::optional<OutputFile> json_, csv_, hdr_, html_;
};

LoadReport ReportOf(const LoadCommand& command, const RequestMix& mix, const MixCaller& caller) {
  LoadReport report{.version = FLASHBIAS_VERSION,
                    .started = absl::Now(),
                    .seed = command.mix.seed,
                    .servers = caller.servers(),
                    .transport = Name(command.caller.transport),
                    .connections = command.caller.clients[0].num_connections,
                    .warmup = command.shape.warmup,
                    .warmup_requests = command.shape.warmup_requests,
                    .client_cores = static_cast<int>(std::thread::hardware_concurrency())};
  for (const AttentionClient::Options& client : command.caller.clients) {
    report.targets.push_back(client.target);
  }
  if (command.shape.loop == LoopKind::kOpen) {
    report.arrivals = command.shape.trace_times ? "trace" : Name(command.shape.arrivals);
  }
  for (int n = 0; n < mix.num_entries(); ++n) {
    const RequestSummary& summary = mix.workload(n).summary();
    report.entries.push_back({.name = mix.Describe(n),
                              .share = mix.Share(n),
                              .request_bytes = summary.request_bytes,
                              .response_bytes = summary.response_bytes});
  }
  return report;
}

absl::Status RunCommand(const LoadCommand& command, RequestMix& mix,
                        const std::string& command_line) {
  absl::StatusOr<ReportFiles> files = ReportFiles::Open(command.outputs);
  if (!files.ok()) return files.status();
  std::unique_ptr<Verifier> verifier;
  if (command.caller.verify_share > 0) {
    constexpr int kPoolRows = 128;
    verifier =
        std::make_unique<Verifier>(&mix, kPoolRows, command.verify_rows, command.caller.seed);
  }
  const absl::StatusOr<std::unique_ptr<MixCaller>> caller =
      MixCaller::Create(command.caller, &mix, verifier.get());
  if (!caller.ok()) return caller.status();
  LoadReport report = ReportOf(command, mix, **caller);
  report.command = command_line;

  std::signal(SIGINT, OnSignal);
  std::signal(SIGTERM, OnSignal);
  LoadDriver::Options options{.limits = command.limits, .metrics = command.metrics};
  if (command.progress) {
    options.observer = [](const LoadProgress& progress) {
      std::cerr << "\r" << FormatProgress(progress) << std::flush;
    };
    options.narrate = [](const std::string& line) { std::cerr << "\n" << line << "\n"; };
  }
  LoadDriver driver(caller->get(), &mix, verifier.get(), options, &g_stop);
  if (command.sweep) {
    absl::StatusOr<SweepReport> sweep = driver.Sweep(command.shape, command.sweep_options);
    if (!sweep.ok()) return sweep.status();
    report.sweep = *std::move(sweep);
  } else {
    absl::StatusOr<RunReport> run = driver.Run(command.shape);
    if (!run.ok()) return run.status();
    report.run = *std::move(run);
  }
  if (command.progress) std::cerr << "\n";

  const bool json_to_stdout = command.outputs.json == "-";
  (json_to_stdout ? std::cerr : std::cout) << FormatTable(report) << std::flush;
  if (json_to_stdout) std::cout << FormatJson(report) << std::flush;
  if (absl::Status status = files->Write(report); !status.ok()) return status;
  return Judge(report, command.allow_errors);
}

int Fail(const absl::Status& status, int exit_code) {
  std::cerr << ErrorLine("flashbias-load", status) << "\n";
  return exit_code;
}

int Main(absl::Span<const char* const> arguments) {
  const absl::StatusOr<CommandLine> line = ParseFlags(arguments, {{"verify", "0.05"}});
  if (!line.ok()) return Fail(line.status(), 2);
  if (line->help) {
    std::cout
        << HelpText(
               "flashbias-load --target=localhost:8471 --concurrency=8 --duration=10s --verify\n"
               "flashbias-load --target=localhost:8471 --rate=100 --duration=30s "
               "--html=report.html\n"
               "flashbias-load --target=localhost:8471 --sweep --slo=50ms --html=report.html\n",
               "client/load/")
        << ConnectionFlagsHelp();
    return 0;
  }
  const absl::StatusOr<LoadCommand> command = CommandFromFlags();
  if (!command.ok()) return Fail(command.status(), 2);
  const absl::StatusOr<std::unique_ptr<RequestMix>> mix = RequestMix::Create(command->mix);
  if (!mix.ok()) return Fail(mix.status(), 2);
  if (command->caller.verify_share > 0) {
    if (absl::Status status = CheckVerifiable(**mix); !status.ok()) return Fail(status, 2);
  }
  std::string command_line = "flashbias-load";
  for (const char* argument : arguments) absl::StrAppend(&command_line, " ", argument);
  const absl::Status status = RunCommand(*command, **mix, command_line);
  return status.ok() ? 0 : Fail(status, 1);
}

}  // namespace
}  // namespace flashbias::client

int main(int argc, char** argv) {
  // Debian's gRPC carries abseil's deadlock detector switched on; it slows every lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // Messages come and go by the megabyte; pages that are handed back cost a fault each to get
  // again.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 2'000'000'000);
  mallopt(M_TOP_PAD, 64 << 20);
  return flashbias::client::Main({argv + 1, static_cast<size_t>(argc > 0 ? argc - 1 : 0)});
}
