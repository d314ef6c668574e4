// flashbias-server over a device that breaks at its first run.
//
//   breaking_server PORT_FILE      serves on free loopback ports, which it writes there
//
// For process_test: how the process ends when its last device has failed.
#include <memory>
#include <utility>
#include <vector>

#include "server/program.h"
#include "tests/server/puppet_backend.h"

namespace flashbias::server {
namespace {

class BreakingBackend final : public AttentionBackend {
 public:
  const BackendInfo& info() const override { return puppet_.info(); }
  HostAllocator& host_allocator() override { return puppet_.host_allocator(); }
  absl::Status health() const override { return puppet_.health(); }
  void Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
           Done done) override {
    const absl::Status broken = absl::InternalError("the device is broken");
    puppet_.set_health(broken);
    puppet_.Run(problems, stats, std::move(done));
    puppet_.EndRun(broken);
  }

 private:
  PuppetBackend puppet_{1};
};

int Main(const char* port_file) {
  ProgramOptions options;
  options.server.listen_address = "127.0.0.1:0";
  options.server.metrics_address = "127.0.0.1:0";
  options.port_file = port_file;
  options.drain_timeout = absl::Seconds(10);
  BlockSignals();
  std::vector<std::unique_ptr<AttentionBackend>> backends;
  backends.push_back(std::make_unique<BreakingBackend>());
  return Serve(options, std::move(backends));
}

}  // namespace
}  // namespace flashbias::server

int main(int argc, char** argv) { return argc == 2 ? flashbias::server::Main(argv[1]) : 2; }
