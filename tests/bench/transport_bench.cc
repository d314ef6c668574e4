// What the way from a caller to the server and back costs: the service and its client, computing
// nothing or on the machine's GPUs, beside a plain service of the generated classes, a bare
// ByteBuffer echo and a service in Python, in turns within one run, over loopback TCP and a unix
// socket. tests/bench/README.md says what is printed.
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "tests/bench/gpu_server_process.h"
#include "tests/bench/service_caller.h"
#include "tests/bench/transport_subject.h"

ABSL_FLAG(std::vector<std::string>, sizes_kb,
          (std::vector<std::string>{"64", "1024", "4096", "16384", "65536"}),
          "Bytes of q, k and v together, in KiB. o has a third of them.");
ABSL_FLAG(std::vector<std::string>, concurrency, (std::vector<std::string>{"1", "4", "8"}),
          "Callers at once.");
ABSL_FLAG(std::vector<std::string>, transports, (std::vector<std::string>{"tcp", "unix"}),
          "tcp, unix.");
ABSL_FLAG(std::vector<std::string>, subjects,
          (std::vector<std::string>{"generated", "echo", "service", "shared"}),
          "generated, echo, service, gpu; shared, gpu_shared, gpu_ipc (over unix only), python "
          "(over tcp only); ratios need the peers.");
ABSL_FLAG(std::string, direction, "forward",
          "What a request is: forward, backward, or both, a forward call and the backward call of "
          "its answer; the last two only of service, shared, gpu, gpu_shared and gpu_ipc.");
ABSL_FLAG(std::string, python_target, "127.0.0.1:8500", "Where peers/python_service.py listens.");
ABSL_FLAG(int, connections, 2, "Connections of a client.");
ABSL_FLAG(int, copy_threads, 0, "Of the service; 0: its default.");
ABSL_FLAG(int64_t, stream_above_bytes, 0, "Larger calls are streamed. 0: the client's default.");
ABSL_FLAG(absl::Duration, run_time, absl::ZeroDuration(),
          "What a batch takes in service and shared, on the thread that brings it.");
ABSL_FLAG(int, rounds, 3, "Turns that each subject gets for each figure.");
ABSL_FLAG(absl::Duration, round, absl::Seconds(1), "Length of one turn.");
ABSL_FLAG(bool, stages, false, "A second line for each subject: medians of the server's stages.");
ABSL_FLAG(bool, tune_malloc, true, "Keep freed memory, as flashbias-server does.");
ABSL_FLAG(std::vector<std::string>, channel_arguments, {},
          "name=value settings of the echo, for trying them out.");
ABSL_FLAG(std::string, serve_gpu_on, "",
          "Of the process that this one starts for gpu_ipc: serve on that unix socket until stdin "
          "ends.");
ABSL_FLAG(std::string, json, "", "File for the figures as JSON. Empty: none.");

namespace flashbias::bench {
namespace {

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// All turns of one subject in one setting.
struct Figures {
  std::vector<double> latencies_ms;
  std::vector<ServerTime> server_times;
  double wall_seconds = 0;
  double cpu_seconds = 0;

  double Percentile(double share) {
    if (latencies_ms.empty()) return 0;
    const auto at = static_cast<size_t>(share * static_cast<double>(latencies_ms.size() - 1));
    std::nth_element(latencies_ms.begin(), latencies_ms.begin() + static_cast<ptrdiff_t>(at),
                     latencies_ms.end());
    return latencies_ms[at];
  }
  // Of a stage of the server, in microseconds.
  template <typename Stage>
  double MedianMicroseconds(const Stage& stage) const {
    if (server_times.empty()) return 0;
    std::vector<double> values;
    values.reserve(server_times.size());
    for (const ServerTime& time : server_times) {
      values.push_back(absl::ToDoubleMicroseconds(stage(time)));
    }
    const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }
  double Count() const { return static_cast<double>(latencies_ms.size()); }
};

absl::Status Turn(TransportSubject* subject, int lanes, absl::Duration length, Figures* figures) {
  const double cpu_before = CpuSeconds();
  const absl::Time begin = absl::Now();
  const absl::Time end = begin + length;
  absl::Mutex mutex;
  absl::Status first_error;
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(lanes));
  for (int lane = 0; lane < lanes; ++lane) {
    threads.emplace_back([&, lane] {
      std::vector<double> latencies_ms;
      std::vector<ServerTime> times;
      absl::Status status;
      while (status.ok() && absl::Now() < end) {
        std::optional<ServerTime> time;
        const absl::Time start = absl::Now();
        status = subject->Call(lane, &time);
        latencies_ms.push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
        if (time.has_value()) times.push_back(*time);
      }
      const absl::MutexLock lock(&mutex);
      first_error.Update(status);
      figures->latencies_ms.insert(figures->latencies_ms.end(), latencies_ms.begin(),
                                   latencies_ms.end());
      figures->server_times.insert(figures->server_times.end(), times.begin(), times.end());
    });
  }
  for (std::thread& thread : threads) thread.join();
  figures->wall_seconds += absl::ToDoubleSeconds(absl::Now() - begin);
  figures->cpu_seconds += CpuSeconds() - cpu_before;
  return first_error;
}

absl::StatusOr<std::unique_ptr<TransportSubject>> Make(const std::string& name,
                                                       const TransportSetup& setup) {
  if (name == "generated") return MakeGeneratedSubject(setup);
  if (name == "echo") return MakeEchoSubject(setup);
  if (name == "service") return MakeServiceSubject(setup);
  if (name == "gpu") return MakeGpuSubject(setup);
  if (name == "shared") return MakeSharedSubject(setup);
  if (name == "gpu_shared") return MakeSharedGpuSubject(setup);
  if (name == "gpu_ipc") return MakeIpcGpuSubject(setup);
  if (name == "python") return MakePythonSubject(setup);
  return absl::InvalidArgumentError(absl::StrCat(
      "subjects has '", name,
      "'; accepted: generated, echo, service, gpu, shared, gpu_shared, gpu_ipc, python"));
}

absl::StatusOr<Calls> CallsFromFlag() {
  const std::string direction = absl::GetFlag(FLAGS_direction);
  if (direction == "forward") return Calls::kForward;
  if (direction == "backward") return Calls::kBackward;
  if (direction == "both") return Calls::kBoth;
  return absl::InvalidArgumentError(
      absl::StrCat("direction is '", direction, "'; accepted: forward, backward, both"));
}

// One line for each subject; appends to `json`.
absl::Status Measure(const std::string& transport, int64_t size_kb, int lanes,
                     nlohmann::json* json) {
  std::vector<std::string> names = absl::GetFlag(FLAGS_subjects);
  if (transport != "unix") {
    for (const char* name : {"shared", "gpu_shared", "gpu_ipc"}) std::erase(names, name);
  }
  const absl::StatusOr<Calls> calls = CallsFromFlag();
  if (!calls.ok()) return calls.status();
  if (*calls != Calls::kForward) {
    for (const char* name : {"generated", "echo", "python"}) std::erase(names, name);
  }
  TransportSetup setup = {
      .calls = *calls,
      .connections = absl::GetFlag(FLAGS_connections),
      .lanes = lanes,
      .tokens = std::max<int64_t>(1, size_kb * 1024 / (3 * kTensorBytesPerToken)),
      .copy_threads = absl::GetFlag(FLAGS_copy_threads),
      .stream_above_bytes = absl::GetFlag(FLAGS_stream_above_bytes),
      .run_time = absl::GetFlag(FLAGS_run_time),
      .python_target = absl::GetFlag(FLAGS_python_target)};
  for (const std::string& argument : absl::GetFlag(FLAGS_channel_arguments)) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(argument, '=');
    int value = 0;
    if (!absl::SimpleAtoi(pair.second, &value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("channel_arguments has '", argument, "'; accepted: name=integer"));
    }
    setup.channel_arguments.emplace_back(pair.first, value);
  }
  std::vector<std::unique_ptr<TransportSubject>> subjects;
  for (const std::string& name : names) {
    if (transport == "unix") {
      setup.unix_path = absl::StrCat("/tmp/transport_bench.", getpid(), ".", name);
    }
    auto subject = Make(name, setup);
    if (!subject.ok()) return subject.status();
    subjects.push_back(*std::move(subject));
  }

  std::vector<Figures> figures(names.size());
  for (int round = -1; round < absl::GetFlag(FLAGS_rounds); ++round) {
    for (size_t n = 0; n < names.size(); ++n) {
      Figures warmup;
      const absl::Duration length = absl::GetFlag(FLAGS_round);
      absl::Status status = round < 0 ? Turn(subjects[n].get(), lanes, length / 4, &warmup)
                                      : Turn(subjects[n].get(), lanes, length, &figures[n]);
      if (!status.ok()) return status;
    }
  }

  const auto bytes = static_cast<double>(ServiceCaller::BytesMoved(setup.calls, setup.tokens));
  std::map<std::string, double> rates;
  for (size_t n = 0; n < names.size(); ++n)
    rates[names[n]] = figures[n].Count() / figures[n].wall_seconds;
  for (size_t n = 0; n < names.size(); ++n) {
    Figures& f = figures[n];
    const double rate = rates[names[n]];
    const auto ratio = [&](const char* peer) {
      return rates.contains(peer) ? rate / rates[peer] : 0.0;
    };
    const double p50 = f.Percentile(0.5);
    const double p99 = f.Percentile(0.99);
    const double cpu_ms = 1e3 * f.cpu_seconds / f.Count();
    const auto stage = [&f](auto member) {
      return f.MedianMicroseconds([member](const ServerTime& time) { return time.*member; });
    };
    const double own_us = f.MedianMicroseconds([](const ServerTime& time) { return time.own(); });
    absl::PrintF(
        "%-5s %6d %3d  %-10s %9.1f %9.3f %9.3f %7.3f %9.3f %7.0f %8.2f %8.2f %8.2f %8.2f\n",
        transport, size_kb, lanes, names[n], rate, p50, p99, 1e-9 * rate * bytes, cpu_ms, own_us,
        ratio("generated"), ratio("echo"), ratio("service"), ratio("python"));
    if (absl::GetFlag(FLAGS_stages) && !f.server_times.empty()) {
      absl::PrintF(
          "      us: receive %.0f, queue %.0f, upload %.0f, kernel %.0f, download %.0f, rest %.0f, "
          "send %.0f\n",
          stage(&ServerTime::receive), stage(&ServerTime::queue), stage(&ServerTime::upload),
          stage(&ServerTime::kernel), stage(&ServerTime::download), stage(&ServerTime::rest),
          stage(&ServerTime::send));
    }
    json->push_back({{"direction", absl::GetFlag(FLAGS_direction)},
                     {"transport", transport},
                     {"size_kb", size_kb},
                     {"bytes", bytes},
                     {"concurrency", lanes},
                     {"subject", names[n]},
                     {"requests_per_second", rate},
                     {"p50_ms", p50},
                     {"p99_ms", p99},
                     {"gigabytes_per_second", 1e-9 * rate * bytes},
                     {"cpu_ms_per_request", cpu_ms},
                     {"server_own_us", own_us},
                     {"server_receive_us", stage(&ServerTime::receive)},
                     {"server_queue_us", stage(&ServerTime::queue)},
                     {"server_upload_us", stage(&ServerTime::upload)},
                     {"server_kernel_us", stage(&ServerTime::kernel)},
                     {"server_download_us", stage(&ServerTime::download)},
                     {"server_rest_us", stage(&ServerTime::rest)},
                     {"server_send_us", stage(&ServerTime::send)},
                     {"ratio_to_generated", ratio("generated")},
                     {"ratio_to_echo", ratio("echo")},
                     {"ratio_to_service", ratio("service")},
                     {"ratio_to_python", ratio("python")}});
  }
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status Run() {
  nlohmann::json rows = nlohmann::json::array();
  std::printf("%-5s %6s %3s  %-10s %9s %9s %9s %7s %9s %7s %8s %8s %8s %8s\n", "over", "KiB in",
              "C", "subject", "req/s", "p50 ms", "p99 ms", "GB/s", "CPU ms", "own us", "/gener.",
              "/echo", "/serv.", "/python");
  for (const std::string& transport : absl::GetFlag(FLAGS_transports)) {
    for (const std::string& size : absl::GetFlag(FLAGS_sizes_kb)) {
      for (const std::string& lanes : absl::GetFlag(FLAGS_concurrency)) {
        int64_t size_kb = 0;
        int count = 0;
        if (!absl::SimpleAtoi(size, &size_kb) || !absl::SimpleAtoi(lanes, &count) || size_kb < 1 ||
            count < 1) {
          return absl::InvalidArgumentError("sizes_kb, concurrency; accepted: positive integers");
        }
        absl::Status status = Measure(transport, size_kb, count, &rows);
        if (!status.ok()) return status;
      }
    }
  }
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream file(path);
    file << nlohmann::json{{"connections", absl::GetFlag(FLAGS_connections)},
                           {"hardware_threads", std::thread::hardware_concurrency()},
                           {"rows", rows}}
                .dump(2)
         << "\n";
    file.close();
    if (!file.good()) return absl::UnknownError(absl::StrCat("cannot write '", path, "'"));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace flashbias::bench

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Measures the way to the server and back.");
  absl::ParseCommandLine(argc, argv);
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  if (absl::GetFlag(FLAGS_tune_malloc)) {
    // NOLINTBEGIN(concurrency-mt-unsafe): no other thread exists yet
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 2'000'000'000);
    mallopt(M_TOP_PAD, 64 << 20);
    // NOLINTEND(concurrency-mt-unsafe)
  }
  const std::string serve_on = absl::GetFlag(FLAGS_serve_gpu_on);
  const absl::Status status = serve_on.empty() ? flashbias::bench::Run()
                                               : flashbias::bench::ServeGpuUntilStdinEnds(serve_on);
  if (status.ok()) return 0;
  std::fprintf(stderr, "transport_bench: %s\n", status.ToString().c_str());
  return 1;
}
