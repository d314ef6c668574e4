#include "tests/bench/gpu_server_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/backend_factory.h"
#include "server/server.h"

namespace flashbias::bench {
namespace {

struct Pipe {
  wire::UniqueFd read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  std::array<int, 2> fds = {-1, -1};
  if (pipe2(fds.data(), O_CLOEXEC) != 0) return absl::UnavailableError("the system has no pipe");
  return Pipe{.read = wire::UniqueFd(fds[0]), .write = wire::UniqueFd(fds[1])};
}

}  // namespace

absl::StatusOr<std::unique_ptr<GpuServerProcess>> GpuServerProcess::Start(
    const std::string& unix_path) {
  absl::StatusOr<Pipe> input = MakePipe();
  absl::StatusOr<Pipe> output = MakePipe();
  if (!input.ok()) return input.status();
  if (!output.ok()) return output.status();
  std::string program = "/proc/self/exe";
  std::string flag = absl::StrCat("--", kServeFlag, "=", unix_path);
  std::array<char*, 3> argv = {program.data(), flag.data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input->read.get(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output->write.get(), STDOUT_FILENO);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("a server process: error ", error));
  }
  std::unique_ptr<GpuServerProcess> process(new GpuServerProcess(pid, std::move(input->write)));
  output->write = wire::UniqueFd();
  char byte = 0;
  ssize_t got = 0;
  do {
    got = read(output->read.get(), &byte, 1);
  } while (got < 0 && errno == EINTR);
  if (got != 1) return absl::UnavailableError("the server process ended before it was ready");
  return process;
}

GpuServerProcess::~GpuServerProcess() {
  input_ = wire::UniqueFd();
  waitpid(pid_, nullptr, 0);
}

absl::Status ServeGpuUntilStdinEnds(const std::string& unix_path) {
  auto backends = CreateBackends({.kind = "cuda"});
  if (!backends.ok()) return backends.status();
  server::ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  options.metrics_address = "";
  options.listen_unix = unix_path;
  options.reflection = false;
  const auto server = server::Server::Create(options, *std::move(backends));
  if (!server.ok()) return server.status();
  std::puts("ready");
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  (*server)->Shutdown(absl::Seconds(5));
  return absl::OkStatus();
}

}  // namespace flashbias::bench
