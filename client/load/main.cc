// flashbias-load: sends attention requests in a closed loop and reports. Flags and wiring only.
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "client/attention_client.h"
#include "client/flags/command_line.h"
#include "client/flags/dtype_flag.h"
#include "client/flags/output_file.h"
#include "client/load/load_runner.h"
#include "client/load/report.h"
#include "client/load/verifier.h"
#include "client/load/workload.h"

ABSL_FLAG(std::string, target, "localhost:8471", "server: host:port or unix:PATH");
ABSL_FLAG(int, concurrency, 8, "requests in flight, 1 to 1024");
ABSL_FLAG(int, connections, 1, "TCP connections, 1 to 256");
ABSL_FLAG(int64_t, heads, 50, "heads of q");
ABSL_FLAG(int64_t, kv_heads, 0, "heads of k and v; 0: as many as --heads");
ABSL_FLAG(int64_t, head_dim, 32, "values per head, 1 to 128");
ABSL_FLAG(int64_t, seq_len, 1024, "keys");
ABSL_FLAG(int64_t, q_len, 0, "queries, at the end of the keys; 0: as many as --seq_len");
ABSL_FLAG(std::string, dtype, "float16", "float16, bfloat16 or float32");
ABSL_FLAG(std::string, alibi, "seed", "slopes: standard (Press et al.), seed (2^(-8k/H)) or none");
ABSL_FLAG(bool, causal, true, "a query sees keys up to its own position; --nocausal: every key");
ABSL_FLAG(absl::optional<float>, eps, absl::nullopt,
          "largest share of softmax mass that skipping may drop; empty: the server's default");
ABSL_FLAG(bool, want_lse, false, "ask for the log-sum-exp");
ABSL_FLAG(std::string, direction, "forward",
          "what a request is: forward; backward, of forward calls that are made before; or both, a "
          "forward call and then the backward call of its answer");
ABSL_FLAG(bool, bias_gradient, false, "ask backward calls for the gradient of the slopes");
ABSL_FLAG(int, inputs, 4, "different inputs, sent in turn, 1 to 64");
ABSL_FLAG(uint64_t, seed, 1, "of the inputs and of which answers are verified");
ABSL_FLAG(absl::optional<absl::Duration>, duration, absl::nullopt,
          "end after this; inf: only by --requests; empty: 10s, or inf when --requests is given");
ABSL_FLAG(int64_t, requests, 0, "end after this many; 0: only by --duration");
ABSL_FLAG(absl::optional<absl::Duration>, warmup, absl::nullopt,
          "sent before, not measured; 0: none; empty: 1s, or inf when --warmup_requests is given");
ABSL_FLAG(int64_t, warmup_requests, 0, "end the warm-up after this many; 0: only by --warmup");
ABSL_FLAG(absl::Duration, timeout, absl::Seconds(60), "of each request");
ABSL_FLAG(int64_t, max_message_bytes, (int64_t{1} << 31) - 1, "of a request or an answer");
ABSL_FLAG(double, verify, 0,
          "share of the answers, 0 to 1, of which rows are compared with a double-precision "
          "reference after the run; --verify alone: 0.05");
ABSL_FLAG(int, verify_rows, 16, "rows compared of each such answer, 1 to 4096");
ABSL_FLAG(bool, allow_errors, false, "failed requests do not make the exit code 1");
ABSL_FLAG(bool, progress, false, "a live line on stderr even when that is no terminal");
ABSL_FLAG(std::string, json, "", "file for the report as JSON; -: stdout, the table to stderr");

namespace flashbias::client {
namespace {

std::atomic<bool> g_stop{false};
static_assert(std::atomic<bool>::is_always_lock_free, "it is set in a signal handler");

void OnSignal(int signal) {
  g_stop.store(true);
  // The second one ends the program.
  std::signal(signal, SIG_DFL);
}

struct Command {
  AttentionClient::Options client;
  WorkloadOptions workload;
  LoadOptions load;
  LoadLimit warmup;
  int verify_rows = 16;
  bool progress = false;
  bool allow_errors = false;
  std::string json;
};

absl::Status CheckLimit(const char* duration_flag, const char* requests_flag,
                        const LoadLimit& limit, absl::Duration least) {
  if (limit.requests < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(requests_flag, " is ", limit.requests, "; accepted: 0 (no limit) and above"));
  }
  if (limit.duration < least) {
    return absl::InvalidArgumentError(absl::StrCat(
        duration_flag, " is ", absl::FormatDuration(limit.duration),
        "; accepted: ", least == absl::ZeroDuration() ? "durations from 0" : "positive durations"));
  }
  if (limit.duration == absl::InfiniteDuration() && limit.requests == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(duration_flag, " is inf; accepted only with ", requests_flag));
  }
  return absl::OkStatus();
}

absl::Status CheckCommand(const Command& c) {
  if (c.client.target.empty()) {
    return absl::InvalidArgumentError("--target is empty; accepted: host:port");
  }
  if (c.client.num_connections < 1 || c.client.num_connections > 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("--connections is ", c.client.num_connections, "; accepted: 1 to 256"));
  }
  constexpr int64_t kMaxMessageBytes = std::numeric_limits<int32_t>::max();
  if (c.client.max_message_bytes < 1 || c.client.max_message_bytes > kMaxMessageBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--max_message_bytes is ",
                                                   c.client.max_message_bytes, "; accepted: 1 to ",
                                                   kMaxMessageBytes));
  }
  if (c.load.concurrency < 1 || c.load.concurrency > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("--concurrency is ", c.load.concurrency, "; accepted: 1 to 1024"));
  }
  if (auto s = CheckLimit("--duration", "--requests", c.load.limit, absl::Nanoseconds(1));
      !s.ok()) {
    return s;
  }
  if (auto s = CheckLimit("--warmup", "--warmup_requests", c.warmup, absl::ZeroDuration());
      !s.ok()) {
    return s;
  }
  if (c.load.timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--timeout is ", absl::FormatDuration(c.load.timeout), "; accepted: positive durations"));
  }
  if (!(c.load.verify_share >= 0 && c.load.verify_share <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--verify is ", c.load.verify_share, "; accepted: 0 to 1"));
  }
  // What an eps may drop of a gradient is no simple share of it.
  if (c.load.verify_share > 0 && c.workload.direction != LoadDirection::kForward &&
      c.workload.eps.value_or(0) > kDefaultEps) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--eps is ", *c.workload.eps, "; accepted with --verify of gradients: up to 2^-24"));
  }
  if (c.verify_rows < 1 || c.verify_rows > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("--verify_rows is ", c.verify_rows, "; accepted: 1 to 4096"));
  }
  return absl::OkStatus();
}

// abseil's optional may be a type of its own.
std::optional<absl::Duration> DurationOf(const absl::optional<absl::Duration>& flag) {
  if (!flag.has_value()) return std::nullopt;
  return *flag;
}

absl::StatusOr<LoadDirection> DirectionFromFlag() {
  const std::string name = absl::GetFlag(FLAGS_direction);
  for (const LoadDirection direction :
       {LoadDirection::kForward, LoadDirection::kBackward, LoadDirection::kBoth}) {
    if (name == Name(direction)) return direction;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--direction is '", name, "'; accepted: forward, backward, both"));
}

absl::StatusOr<Command> CommandFromFlags() {
  const std::string dtype_name = absl::GetFlag(FLAGS_dtype);
  const std::optional<DType> dtype = DTypeFromName(dtype_name);
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--dtype is '", dtype_name, "'; accepted: float16, bfloat16, float32"));
  }
  const absl::StatusOr<LoadDirection> direction = DirectionFromFlag();
  if (!direction.ok()) return direction.status();
  Command command{
      .client = {.target = absl::GetFlag(FLAGS_target),
                 .num_connections = absl::GetFlag(FLAGS_connections),
                 // A request that is tried again would hide an error and count two as one.
                 .retry = {.max_attempts = 1},
                 .max_message_bytes = absl::GetFlag(FLAGS_max_message_bytes)},
      .workload = {.direction = *direction,
                   .heads = absl::GetFlag(FLAGS_heads),
                   .kv_heads = absl::GetFlag(FLAGS_kv_heads),
                   .head_dim = absl::GetFlag(FLAGS_head_dim),
                   .seq_len = absl::GetFlag(FLAGS_seq_len),
                   .q_len = absl::GetFlag(FLAGS_q_len),
                   .dtype = *dtype,
                   .alibi = absl::GetFlag(FLAGS_alibi),
                   .causal = absl::GetFlag(FLAGS_causal),
                   .want_lse =
                       absl::GetFlag(FLAGS_want_lse) || *direction != LoadDirection::kForward,
                   .bias_gradient = absl::GetFlag(FLAGS_bias_gradient),
                   .num_inputs = absl::GetFlag(FLAGS_inputs),
                   .seed = absl::GetFlag(FLAGS_seed)},
      .load = {.concurrency = absl::GetFlag(FLAGS_concurrency),
               .limit = LimitFrom(DurationOf(absl::GetFlag(FLAGS_duration)),
                                  absl::GetFlag(FLAGS_requests), absl::Seconds(10)),
               .timeout = absl::GetFlag(FLAGS_timeout),
               .verify_share = absl::GetFlag(FLAGS_verify),
               .seed = absl::GetFlag(FLAGS_seed)},
      .warmup = LimitFrom(DurationOf(absl::GetFlag(FLAGS_warmup)),
                          absl::GetFlag(FLAGS_warmup_requests), absl::Seconds(1)),
      .verify_rows = absl::GetFlag(FLAGS_verify_rows),
      .progress = absl::GetFlag(FLAGS_progress) || isatty(STDERR_FILENO) == 1,
      .allow_errors = absl::GetFlag(FLAGS_allow_errors),
      .json = absl::GetFlag(FLAGS_json)};
  if (const auto eps = absl::GetFlag(FLAGS_eps); eps.has_value()) command.workload.eps = *eps;
  if (absl::Status status = CheckCommand(command); !status.ok()) return status;
  return command;
}

// Prints the live line; remembers the last count for the rate of the last second.
class ProgressLine {
 public:
  explicit ProgressLine(const char* phase) : phase_(phase) {}

  void operator()(const LoadProgress& p) {
    const double seconds = absl::ToDoubleSeconds(p.elapsed - last_.elapsed);
    const double rate =
        seconds > 0 ? static_cast<double>(p.succeeded - last_.succeeded) / seconds : 0;
    last_ = p;
    std::cerr << absl::StrFormat("\r%s %4.0f s  %d succeeded  %d failed  %.1f requests/s   ",
                                 phase_, absl::ToDoubleSeconds(p.elapsed), p.succeeded, p.failed,
                                 rate)
              << std::flush;
  }

 private:
  const char* const phase_;
  LoadProgress last_;
};

// `file`: what --json names, or nullopt.
absl::Status WriteReport(const LoadReport& report, const std::string& json,
                         std::optional<OutputFile>* file) {
  (json == "-" ? std::cerr : std::cout) << FormatTable(report) << std::flush;
  if (json == "-") std::cout << FormatJson(report) << std::flush;
  return file->has_value() ? (*file)->Write({FormatJson(report)}) : absl::OkStatus();
}

absl::Status RunCommand(const Command& command, Workload& workload, AttentionClient* client) {
  // A report that cannot be written is not measured.
  std::optional<OutputFile> json_file;
  if (!command.json.empty() && command.json != "-") {
    absl::StatusOr<OutputFile> file = OutputFile::Open(command.json);
    if (!file.ok()) return file.status();
    json_file.emplace(*std::move(file));
  }
  LoadReport report{.target = command.client.target,
                    .connections = command.client.num_connections,
                    .concurrency = command.load.concurrency,
                    .workload = command.workload,
                    .request = workload.summary()};
  absl::StatusOr<ServerInfo> server = client->GetServerInfo({.timeout = absl::Seconds(10)});
  if (!server.ok()) return server.status();
  report.server = *std::move(server);

  if (auto made = MakeForwardCalls(client, command.load.timeout, &workload); !made.ok()) {
    return made;
  }

  std::unique_ptr<Verifier> verifier;
  if (command.load.verify_share > 0) {
    constexpr int kPoolRows = 128;
    verifier =
        std::make_unique<Verifier>(&workload, kPoolRows, command.verify_rows, command.load.seed);
  }
  std::signal(SIGINT, OnSignal);
  std::signal(SIGTERM, OnSignal);
  std::function<void(const LoadProgress&)> progress;
  if (command.warmup.duration > absl::ZeroDuration()) {
    LoadOptions warmup = command.load;
    warmup.limit = command.warmup;
    warmup.verify_share = 0;
    if (command.progress) progress = ProgressLine("warm-up");
    RunLoad(client, workload, nullptr, warmup, g_stop, progress);
  }
  if (command.progress) progress = ProgressLine("load   ");
  report.result = RunLoad(client, workload, verifier.get(), command.load, g_stop, progress);
  if (command.progress) std::cerr << "\n";
  if (verifier != nullptr) report.verify = verifier->Verify(report.result.samples);

  if (absl::Status status = WriteReport(report, command.json, &json_file); !status.ok())
    return status;
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
    std::cout << HelpText(
        "flashbias-load --target=localhost:8471 --concurrency=8 --duration=10s --verify\n",
        "client/load/");
    return 0;
  }
  const absl::StatusOr<Command> command = CommandFromFlags();
  if (!command.ok()) return Fail(command.status(), 2);
  const absl::StatusOr<std::unique_ptr<Workload>> workload = Workload::Create(command->workload);
  if (!workload.ok()) return Fail(workload.status(), 2);
  const absl::StatusOr<std::unique_ptr<AttentionClient>> client =
      AttentionClient::Create(command->client);
  if (!client.ok()) return Fail(client.status(), 2);
  const absl::Status status = RunCommand(*command, **workload, client->get());
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
