// Connections that the server closes at their age, under calls.
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "server/server.h"
#include "tests/integration/http_get.h"
#include "tests/integration/remote_problem.h"
#include "tests/server/puppet_backend.h"
#include "tests/support/attention_case.h"

namespace flashbias::integration {
namespace {

using client::AttendResult;
using client::AttentionClient;
using server::PuppetBackend;
using server::Server;

// The ports of the peers that have a connection to `port` of this machine, as the kernel lists
// them.
std::set<int> PeerPorts(int port) {
  std::set<int> peers;
  const auto port_of = [](const std::string& address) {
    uint32_t number = 0;
    return absl::SimpleHexAtoi(address.substr(address.rfind(':') + 1), &number)
               ? static_cast<int>(number)
               : -1;
  };
  for (const char* table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
    std::ifstream lines(table);
    std::string rest;
    std::getline(lines, rest);
    for (std::string index, local, remote, state; lines >> index >> local >> remote >> state;) {
      std::getline(lines, rest);
      if (port_of(local) == port && state == "01") peers.insert(port_of(remote));
    }
  }
  return peers;
}

class ConnectionAgeTest : public ::testing::Test {
 protected:
  void Start(absl::Duration grace) {
    auto backend = std::make_unique<PuppetBackend>(1);
    backend_ = backend.get();
    auto server = Server::Create({.listen_address = "127.0.0.1:0",
                                  .metrics_address = "127.0.0.1:0",
                                  .max_connection_age = absl::Seconds(1),
                                  .max_connection_age_grace = grace},
                                 std::move(backend));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void TearDown() override {
    if (server_ == nullptr) return;
    while (backend_->runs_in_flight() > 0) backend_->EndRun();
  }

  std::unique_ptr<AttentionClient> NewClient(client::RetryPolicy retry = {}) const {
    auto client = AttentionClient::Create(
        {.target = absl::StrCat("127.0.0.1:", server_->port()), .retry = retry});
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }

  // A call whose run is in flight, by a client that would not send it again.
  std::future<absl::StatusOr<AttendResult>> BeginCall() {
    auto call = std::async(std::launch::async, [this] {
      return NewClient({.max_attempts = 1})->Attend(RequestOf(owned_));
    });
    EXPECT_TRUE(backend_->WaitForRunsInFlight(1));
    return call;
  }

  // Calls until the server has seen that many connections.
  void CallUntilConnections(size_t count, const std::function<absl::Status()>& call) const {
    const absl::Time end = absl::Now() + absl::Seconds(60);
    std::set<int> peers;
    while (peers.size() < count) {
      ASSERT_LT(absl::Now(), end) << peers.size() << " connections";
      const absl::Status status = call();
      ASSERT_TRUE(status.ok()) << status;
      peers.merge(PeerPorts(server_->port()));
    }
  }

  const support::OwnedProblem owned_ =
      support::Materialise({.sequences = {{.q_len = 3, .kv_len = 5}}});
  PuppetBackend* backend_ = nullptr;
  std::unique_ptr<Server> server_;
};

// A call that meets the end of its connection before it is sent is the client's to send again; one
// that the server has is answered.
TEST_F(ConnectionAgeTest, NoCallIsLostBetweenConnections) {
  Start(absl::Seconds(30));
  backend_->set_automatic(true);
  const auto client = NewClient();
  CallUntilConnections(4, [&] { return client->Attend(RequestOf(owned_)).status(); });
  const absl::StatusOr<Samples> samples = Scrape(server_->metrics_port());
  ASSERT_TRUE(samples.ok()) << samples.status();
  for (const auto& [name, value] : *samples) {
    const bool bad = absl::StartsWith(name, "flashbias_cancelled_total") ||
                     (absl::StartsWith(name, "flashbias_requests_total{") &&
                      !absl::StrContains(name, "code=\"OK\""));
    if (bad) {
      EXPECT_EQ(value, 0) << name;
    }
  }
}

TEST_F(ConnectionAgeTest, ACallOlderThanItsConnectionEndsWithinTheGrace) {
  Start(absl::InfiniteDuration());
  auto call = BeginCall();
  // When this client comes with its third connection, that of the call has reached its age.
  const auto other = NewClient();
  CallUntilConnections(4, [&] { return other->GetServerInfo().status(); });
  backend_->EndRun();
  const absl::StatusOr<AttendResult> result = call.get();
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST_F(ConnectionAgeTest, ACallBeyondTheGraceEnds) {
  Start(absl::Milliseconds(1));
  EXPECT_EQ(BeginCall().get().status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace flashbias::integration
