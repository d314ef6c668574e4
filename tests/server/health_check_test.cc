#include "server/health_check.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"

namespace flashbias::server {
namespace {

using testing::HasSubstr;

ProgramOptions Listening(const std::string& address) {
  ProgramOptions options;
  options.server.listen_address = address;
  return options;
}

std::string TargetOf(const ProgramOptions& options) {
  const absl::StatusOr<std::string> target = HealthTarget(options);
  return target.ok() ? *target : std::string(target.status().message());
}

class PortFile {
 public:
  explicit PortFile(const std::string& text)
      : path_(absl::StrCat(testing::TempDir(), "/health_check_ports_", getpid())) {
    std::ofstream(path_) << text;
  }
  PortFile(const PortFile&) = delete;
  PortFile& operator=(const PortFile&) = delete;
  ~PortFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

TEST(HealthTargetTest, IsTheAddressSeenFromTheHost) {
  EXPECT_EQ(TargetOf(Listening("0.0.0.0:8471")), "127.0.0.1:8471");
  EXPECT_EQ(TargetOf(Listening("[::]:8471")), "127.0.0.1:8471");
  EXPECT_EQ(TargetOf(Listening("10.1.2.3:99")), "10.1.2.3:99");
  EXPECT_EQ(TargetOf(Listening("[::1]:99")), "[::1]:99");
  EXPECT_EQ(TargetOf(Listening("localhost:99")), "localhost:99");
}

TEST(HealthTargetTest, ThePortFileHasThePort) {
  const PortFile ports("metrics_port=5\ngrpc_port=1234\n");
  ProgramOptions options = Listening("0.0.0.0:0");
  options.port_file = ports.path();
  EXPECT_EQ(TargetOf(options), "127.0.0.1:1234");
}

TEST(HealthTargetTest, APortFileWithoutAPortIsAnError) {
  ProgramOptions options = Listening("0.0.0.0:8471");
  options.port_file = testing::TempDir() + "/no_such_file";
  EXPECT_TRUE(absl::IsUnavailable(HealthTarget(options).status()));
  EXPECT_THAT(TargetOf(options), HasSubstr("no_such_file' has no line grpc_port=N"));
  const PortFile ports("metrics_port=5\ngrpc_port=0\n");
  options.port_file = ports.path();
  EXPECT_TRUE(absl::IsUnavailable(HealthTarget(options).status()));
}

TEST(HealthTargetTest, TheUnixSocketStandsInForAnUnknownPort) {
  ProgramOptions options = Listening("0.0.0.0:0");
  EXPECT_TRUE(absl::IsFailedPrecondition(HealthTarget(options).status()));
  EXPECT_THAT(TargetOf(options), HasSubstr("--port_file"));
  options.server.listen_unix = "/run/flashbias/socket";
  EXPECT_EQ(TargetOf(options), "unix:/run/flashbias/socket");
}

// A gRPC server with gRPC's own health service, or with none.
struct HealthServer {
  explicit HealthServer(bool with_health) {
    grpc::EnableDefaultHealthCheckService(with_health);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterCallbackGenericService(&rest);
    server = builder.BuildAndStart();
  }
  std::string target() const { return absl::StrCat("127.0.0.1:", port); }

  int port = 0;
  // gRPC wants some service; this one answers everything else with UNIMPLEMENTED.
  grpc::CallbackGenericService rest;
  std::unique_ptr<grpc::Server> server;
};

std::string HealthOf(const std::string& target) {
  const absl::Status health = CheckHealth(target, absl::Seconds(20));
  EXPECT_TRUE(health.ok() || absl::IsUnavailable(health)) << health;
  return std::string(health.message());
}

TEST(CheckHealthTest, OnlyServingIsHealthy) {
  const HealthServer server(true);
  ASSERT_NE(server.server, nullptr);
  server.server->GetHealthCheckService()->SetServingStatus(true);
  const absl::Status serving = CheckHealth(server.target(), absl::Seconds(20));
  EXPECT_TRUE(serving.ok()) << serving;
  server.server->GetHealthCheckService()->SetServingStatus(false);
  EXPECT_EQ(HealthOf(server.target()), absl::StrCat(server.target(), ": NOT_SERVING"));
}

TEST(CheckHealthTest, AServerWithoutHealthIsNotHealthy) {
  const HealthServer server(false);
  ASSERT_NE(server.server, nullptr);
  EXPECT_THAT(HealthOf(server.target()), HasSubstr("UNIMPLEMENTED"));
}

TEST(CheckHealthTest, NobodyThereIsOneLine) {
  const std::string message = HealthOf("unix:/no/such/socket");
  EXPECT_THAT(message, HasSubstr("unix:/no/such/socket: UNAVAILABLE"));
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

}  // namespace
}  // namespace flashbias::server
