#include "server/flags.h"

#include <cstdint>
#include <map>
#include <string_view>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

using flashbias::server::ServerOptions;

ABSL_FLAG(std::string, listen_address, ServerOptions().listen_address,
          "Where to serve gRPC, host:port. Port 0 picks a free one, see --port_file.");
ABSL_FLAG(std::string, listen_unix, ServerOptions().listen_unix,
          "Path of a unix socket to serve gRPC on too, for callers on this host that run as this "
          "user (mode 0600). Empty: none.");
ABSL_FLAG(std::string, shared_memory, "auto",
          "Let callers on the unix socket keep tensors in memory that they share with the server: "
          "on, off, or auto (on where --listen_unix is set). Its socket is PATH.regions.");
ABSL_FLAG(int64_t, max_region_bytes, ServerOptions().max_region_bytes,
          "Shared memory, in bytes, of all callers, at least 4096. Beyond: RESOURCE_EXHAUSTED.");
ABSL_FLAG(int64_t, max_peer_region_bytes, ServerOptions().max_peer_region_bytes,
          "Shared memory, in bytes, of one calling process, at least 4096.");
ABSL_FLAG(int64_t, max_regions, ServerOptions().max_regions,
          "Regions of shared memory of all callers, 1 to 65536.");
ABSL_FLAG(std::string, metrics_address, ServerOptions().metrics_address,
          "Where to serve GET /metrics, host:port. Empty: nowhere.");
ABSL_FLAG(std::string, port_file, "",
          "Once serving, write the chosen ports there as lines grpc_port=N and metrics_port=N "
          "(metrics_port=0: no endpoint). Empty: no file.");
ABSL_FLAG(bool, reflection, ServerOptions().reflection, "Serve gRPC reflection.");

ABSL_FLAG(std::string, backend, flashbias::BackendOptions().kind,
          "What computes: 'cuda', 'cpu', or 'auto' (cuda where a usable device is, else cpu).");
ABSL_FLAG(int, cpu_threads, flashbias::BackendOptions().cpu_threads,
          "Threads of the CPU backend. 0: one per hardware thread.");
ABSL_FLAG(std::string, cuda_devices, flashbias::BackendOptions().cuda_devices,
          "CUDA devices to use, ordinals separated by commas. Empty: every usable one.");
ABSL_FLAG(int, cuda_slots, flashbias::BackendOptions().cuda_slots,
          "Batches in flight on each CUDA device, 1 to 16.");
ABSL_FLAG(int64_t, device_memory_bytes, flashbias::BackendOptions().device_memory_bytes,
          "Memory, in bytes, that batches in flight may take of each CUDA device. A request that "
          "needs more: RESOURCE_EXHAUSTED. 0: half of what is free at start.");
ABSL_FLAG(int64_t, pinned_memory_bytes, flashbias::BackendOptions().pinned_memory_bytes,
          "Pinned host memory, in bytes, for requests, results and staging with CUDA devices; at "
          "least 16777216. Taken as it is needed; what is idle for ten seconds goes back, down to "
          "512 MiB.");

ABSL_FLAG(int64_t, max_queue_requests, ServerOptions().scheduler.max_queue_requests,
          "Requests that may wait. Beyond: RESOURCE_EXHAUSTED with a retry hint.");
ABSL_FLAG(int64_t, max_queue_bytes, ServerOptions().scheduler.max_queue_bytes,
          "Memory, in bytes, that waiting requests may hold, messages and outputs. Beyond: "
          "RESOURCE_EXHAUSTED with a retry hint. A larger request is taken when nothing waits.");
ABSL_FLAG(absl::Duration, max_queue_delay, ServerOptions().scheduler.batch.max_queue_delay,
          "While the backend is busy but could take one more batch: how long a request waits for "
          "company. 0: not at all.");
ABSL_FLAG(int64_t, worthwhile_batch_bytes, ServerOptions().scheduler.batch.worthwhile_bytes,
          "While the backend is busy but could take one more batch: requests of so many bytes "
          "together, messages and outputs, wait for no company.");
ABSL_FLAG(int64_t, max_batch_work, ServerOptions().scheduler.batch.max_work,
          "Budget of a batch in estimated score elements (query row, key, head). A larger request "
          "runs alone.");
ABSL_FLAG(int64_t, max_batch_bytes, ServerOptions().scheduler.batch.max_bytes,
          "Budget of a batch in bytes of requests and outputs. A larger request runs alone.");
ABSL_FLAG(int64_t, max_batch_requests, ServerOptions().scheduler.batch.max_requests,
          "Requests in a batch.");

ABSL_FLAG(int64_t, max_message_bytes, ServerOptions().max_message_bytes,
          "Size, in bytes, of one request or response message, 1024 to 2147483647.");
ABSL_FLAG(int64_t, max_stream_bytes, ServerOptions().max_stream_bytes,
          "Host memory, in bytes, that all calls to AttendStream together may hold, inputs and "
          "outputs, 1048576 to 2^48. Beyond: RESOURCE_EXHAUSTED, with a retry hint where waiting "
          "may help.");
ABSL_FLAG(int64_t, max_sequences, ServerOptions().max_sequences,
          "Sequences in one request, 1 to 65536.");
ABSL_FLAG(int, copy_threads, ServerOptions().copy_threads,
          "Threads that copy one large request at once, 1 to 64. 0: a quarter of the hardware "
          "threads, at most 8.");
ABSL_FLAG(int, max_concurrent_streams, ServerOptions().max_concurrent_streams,
          "Calls that may be open at once on one connection.");
ABSL_FLAG(absl::Duration, keepalive_time, ServerOptions().keepalive_time,
          "Ping a client that has been silent for this long, 1s to 24h.");
ABSL_FLAG(absl::Duration, keepalive_timeout, ServerOptions().keepalive_timeout,
          "Drop a client that leaves a ping unanswered for this long, 1s to 24h.");
ABSL_FLAG(absl::Duration, min_ping_interval, ServerOptions().min_ping_interval,
          "Drop clients that ping more often than this while no data flows, 0 to 24h.");
ABSL_FLAG(absl::Duration, max_connection_age, ServerOptions().max_connection_age,
          "Close a connection at this age, give or take a tenth: its client makes a new one for "
          "its next calls, so that balancers spread them anew. 1s to 24h; inf: never.");
ABSL_FLAG(absl::Duration, max_connection_age_grace, ServerOptions().max_connection_age_grace,
          "How long calls in flight may go on on a connection that has reached its age. Beyond: "
          "UNAVAILABLE. 0 to 24h; inf: until they end.");

ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(30),
          "On SIGTERM or SIGINT: time for accepted requests to finish. 0: cut them short.");
ABSL_FLAG(std::string, log_level, "info", "One of debug, info, warning, error.");
ABSL_FLAG(std::string, log_format, "text", "text (key=value) or json (one object a line).");

ABSL_FLAG(bool, health_check, false,
          "Serve nothing: ask the server that runs on this host with the same flags whether it "
          "serves. Exit code 0: it does; 1: it does not, see stderr.");
ABSL_FLAG(bool, print_config, false,
          "Serve nothing: check the flags and print them as a flag file has them.");

namespace flashbias::server {
namespace {

absl::StatusOr<Action> RequestedAction() {
  const bool health_check = absl::GetFlag(FLAGS_health_check);
  const bool print_config = absl::GetFlag(FLAGS_print_config);
  if (health_check && print_config) {
    return absl::InvalidArgumentError(
        "health_check and print_config are both true; accepted: one of them");
  }
  if (health_check) return Action::kHealthCheck;
  return print_config ? Action::kPrintConfig : Action::kServe;
}

std::map<std::string, const absl::CommandLineFlag*> ServerFlags() {
  std::map<std::string, const absl::CommandLineFlag*> sorted;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (IsServerFlagFile(flag->Filename())) sorted.emplace(std::string(name), flag);
  }
  return sorted;
}

absl::StatusOr<LogLevel> ParseLevel(const std::string& level) {
  if (level == "debug") return LogLevel::kDebug;
  if (level == "info") return LogLevel::kInfo;
  if (level == "warning") return LogLevel::kWarning;
  if (level == "error") return LogLevel::kError;
  return absl::InvalidArgumentError(
      absl::StrCat("log_level is '", level, "'; accepted: debug, info, warning, error"));
}

absl::StatusOr<LogFormat> ParseFormat(const std::string& format) {
  if (format == "text") return LogFormat::kText;
  if (format == "json") return LogFormat::kJson;
  return absl::InvalidArgumentError(
      absl::StrCat("log_format is '", format, "'; accepted: text, json"));
}

absl::StatusOr<SharedMemory> ParseSharedMemory(const std::string& mode) {
  if (mode == "auto") return SharedMemory::kAuto;
  if (mode == "on") return SharedMemory::kOn;
  if (mode == "off") return SharedMemory::kOff;
  return absl::InvalidArgumentError(
      absl::StrCat("shared_memory is '", mode, "'; accepted: on, off, auto"));
}

}  // namespace

absl::StatusOr<ProgramOptions> OptionsFromFlags() {
  ProgramOptions options;
  const absl::StatusOr<Action> action = RequestedAction();
  if (!action.ok()) return action.status();
  options.action = *action;
  options.server.listen_address = absl::GetFlag(FLAGS_listen_address);
  options.server.listen_unix = absl::GetFlag(FLAGS_listen_unix);
  const absl::StatusOr<SharedMemory> shared = ParseSharedMemory(absl::GetFlag(FLAGS_shared_memory));
  if (!shared.ok()) return shared.status();
  options.server.shared_memory = *shared;
  options.server.max_region_bytes = absl::GetFlag(FLAGS_max_region_bytes);
  options.server.max_peer_region_bytes = absl::GetFlag(FLAGS_max_peer_region_bytes);
  options.server.max_regions = absl::GetFlag(FLAGS_max_regions);
  options.server.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  options.server.reflection = absl::GetFlag(FLAGS_reflection);
  options.server.scheduler = {
      .batch = {.max_work = absl::GetFlag(FLAGS_max_batch_work),
                .max_bytes = absl::GetFlag(FLAGS_max_batch_bytes),
                .max_requests = absl::GetFlag(FLAGS_max_batch_requests),
                .worthwhile_bytes = absl::GetFlag(FLAGS_worthwhile_batch_bytes),
                .max_queue_delay = absl::GetFlag(FLAGS_max_queue_delay)},
      .max_queue_requests = absl::GetFlag(FLAGS_max_queue_requests),
      .max_queue_bytes = absl::GetFlag(FLAGS_max_queue_bytes),
      .start_at_once = true};
  options.server.max_message_bytes = absl::GetFlag(FLAGS_max_message_bytes);
  options.server.max_stream_bytes = absl::GetFlag(FLAGS_max_stream_bytes);
  options.server.max_sequences = absl::GetFlag(FLAGS_max_sequences);
  options.server.copy_threads = absl::GetFlag(FLAGS_copy_threads);
  options.server.max_concurrent_streams = absl::GetFlag(FLAGS_max_concurrent_streams);
  options.server.keepalive_time = absl::GetFlag(FLAGS_keepalive_time);
  options.server.keepalive_timeout = absl::GetFlag(FLAGS_keepalive_timeout);
  options.server.min_ping_interval = absl::GetFlag(FLAGS_min_ping_interval);
  options.server.max_connection_age = absl::GetFlag(FLAGS_max_connection_age);
  options.server.max_connection_age_grace = absl::GetFlag(FLAGS_max_connection_age_grace);
  const absl::Status valid = Validate(options.server);
  if (!valid.ok()) return valid;

  options.backend = {.kind = absl::GetFlag(FLAGS_backend),
                     .cpu_threads = absl::GetFlag(FLAGS_cpu_threads),
                     .cuda_devices = absl::GetFlag(FLAGS_cuda_devices),
                     .cuda_slots = absl::GetFlag(FLAGS_cuda_slots),
                     .device_memory_bytes = absl::GetFlag(FLAGS_device_memory_bytes),
                     .pinned_memory_bytes = absl::GetFlag(FLAGS_pinned_memory_bytes)};
  const absl::Status valid_backend = Validate(options.backend);
  if (!valid_backend.ok()) return valid_backend;
  options.port_file = absl::GetFlag(FLAGS_port_file);
  options.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  if (options.drain_timeout < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "drain_timeout is ", absl::FormatDuration(options.drain_timeout), "; accepted: 0 or more"));
  }
  const absl::StatusOr<LogLevel> level = ParseLevel(absl::GetFlag(FLAGS_log_level));
  if (!level.ok()) return level.status();
  options.log_level = *level;
  const absl::StatusOr<LogFormat> format = ParseFormat(absl::GetFlag(FLAGS_log_format));
  if (!format.ok()) return format.status();
  options.log_format = *format;
  return options;
}

bool IsServerFlagFile(absl::string_view file) {
  // As the compiler was given its path, whatever that looks like.
  return absl::EndsWith(file, __FILE__) || absl::EndsWith(__FILE__, file);
}

std::string ConfigText() {
  std::string text;
  for (const auto& [name, flag] : ServerFlags()) {
    if (name == "health_check" || name == "print_config") continue;
    absl::StrAppend(&text, "--", name, "=", flag->CurrentValue(), "\n");
  }
  return text;
}

std::string HelpText() {
  std::string text =
      "flashbias-server serves attention with ALiBi or low-rank bias over gRPC.\n"
      "Flags, as --flag=value; --flagfile=PATH reads them from a file, one a line:\n\n";
  for (const auto& [name, flag] : ServerFlags()) {
    absl::StrAppend(&text, "  --", name, " (default: ", flag->DefaultValue(), ")\n      ",
                    flag->Help(), "\n");
  }
  return text;
}

}  // namespace flashbias::server
