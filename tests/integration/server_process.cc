#include "tests/integration/server_process.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace flashbias::integration {

std::string ProgramPath(const std::string& name) {
  const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const std::filesystem::path in_bundle = here / ".." / "tools" / name;
  return std::filesystem::exists(in_bundle) ? in_bundle : here / name;
}

std::string TestBackend() {
  const char* const backend = std::getenv("FLASHBIAS_TEST_BACKEND");
  return backend == nullptr ? "cpu" : backend;
}

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(
    const std::vector<std::string>& flags) {
  // In /tmp: the path of a socket may be 107 bytes long.
  std::string directory = "/tmp/flashbias_XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) {
    return absl::UnavailableError("no directory can be made in /tmp");
  }
  std::unique_ptr<ServerProcess> server(new ServerProcess(directory));
  std::vector<std::string> arguments = {"--listen_address=127.0.0.1:0",
                                        "--metrics_address=127.0.0.1:0",
                                        absl::StrCat("--listen_unix=", server->Path("socket")),
                                        absl::StrCat("--port_file=", server->Path("ports")),
                                        absl::StrCat("--backend=", TestBackend())};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  absl::StatusOr<ChildProcess> child =
      ChildProcess::Start(ProgramPath("flashbias-server"), arguments, server->Path("log"));
  if (!child.ok()) return child.status();
  server->child_ = std::make_unique<ChildProcess>(*std::move(child));
  if (absl::Status ports = server->AwaitPorts(); !ports.ok()) return ports;
  return server;
}

ServerProcess::~ServerProcess() {
  child_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

absl::Status ServerProcess::AwaitPorts() {
  const absl::Time give_up = absl::Now() + absl::Seconds(60);
  while (port_ == 0 || metrics_port_ == 0) {
    if (!child_->Running() || absl::Now() > give_up) {
      return absl::UnavailableError(
          absl::StrCat("flashbias-server does not serve; it printed:\n", Output()));
    }
    absl::SleepFor(absl::Milliseconds(5));
    std::ifstream file(Path("ports"));
    for (std::string line; std::getline(file, line);) {
      const size_t equals = line.find('=');
      if (equals == std::string::npos) continue;
      int* const port = absl::StartsWith(line, "grpc_port=") ? &port_ : &metrics_port_;
      if (!absl::SimpleAtoi(line.substr(equals + 1), port)) *port = 0;
    }
  }
  return absl::OkStatus();
}

std::string ServerProcess::tcp_target() const { return absl::StrCat("127.0.0.1:", port_); }
std::string ServerProcess::unix_target() const { return absl::StrCat("unix:", Path("socket")); }
std::string ServerProcess::Path(const std::string& name) const {
  return absl::StrCat(directory_, "/", name);
}

int64_t ServerProcess::StatusBytes(const std::string& name) const {
  std::ifstream status(absl::StrCat("/proc/", child_->pid(), "/status"));
  for (std::string word; status >> word;) {
    int64_t kib = 0;
    if (word == name && status >> kib) return kib << 10;
  }
  return -1;
}

int ServerProcess::OpenDescriptors() const {
  std::error_code error;
  const std::filesystem::directory_iterator entries(absl::StrCat("/proc/", child_->pid(), "/fd"),
                                                    error);
  if (error) return -1;
  return static_cast<int>(std::distance(begin(entries), end(entries)));
}

int ServerProcess::MappedRegions() const {
  std::ifstream maps(absl::StrCat("/proc/", child_->pid(), "/maps"));
  if (!maps) return -1;
  int count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += absl::StrContains(line, "flashbias-region") ? 1 : 0;
  }
  return count;
}

absl::Status ServerProcess::AwaitNothingHeld(absl::Duration patience) const {
  const absl::Time give_up = absl::Now() + patience;
  for (;;) {
    const absl::StatusOr<Samples> samples = Metrics();
    if (!samples.ok()) return samples.status();
    std::string held;
    int seen = 0;
    for (const auto& [name, value] : *samples) {
      for (const char* gauge :
           {"flashbias_inflight_requests", "flashbias_queue_requests", "flashbias_queue_bytes",
            "flashbias_stream_reserved_bytes", "flashbias_shm_region", "flashbias_device_region",
            "flashbias_registered_bytes", "flashbias_pinned_pool_used_bytes",
            "flashbias_device_memory_used_bytes"}) {
        if (!absl::StartsWith(name, gauge) || absl::StrContains(name, "_limit")) continue;
        ++seen;
        if (value != 0) absl::StrAppend(&held, " ", name, "=", value);
      }
    }
    // A gauge that has gone would look like nothing held.
    constexpr int kGauges = 11;  // the regions' stand for two each; one of the rest for one device
    if (seen < kGauges) return absl::InternalError("/metrics has not all gauges");
    if (held.empty()) return absl::OkStatus();
    if (absl::Now() > give_up) {
      return absl::DeadlineExceededError(absl::StrCat("still held:", held));
    }
    absl::SleepFor(absl::Milliseconds(2));
  }
}

}  // namespace flashbias::integration
