// Calls to a target of several addresses, with a server of this process at each.
#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/fake_server.h"

namespace flashbias::client {
namespace {

using ::testing::Each;

grpc::Status EchoOnly(int, grpc::ServerContext*, const v1::AttendRequest& request,
                      v1::AttendResponse* response) {
  return Echo(request, response);
}

// Servers, and a request that any of them answers.
class LoadBalancingTest : public testing::Test {
 protected:
  void AddServer(FakeServer::Handler handler = EchoOnly) {
    servers_.push_back(std::make_unique<FakeServer>(std::move(handler)));
    addresses_.push_back(servers_.back()->target());
  }

  std::unique_ptr<AttentionClient> Connect(AttentionClient::Options options) const {
    options.target = "ipv4:" + absl::StrJoin(addresses_, ",");
    absl::StatusOr<std::unique_ptr<AttentionClient>> client =
        AttentionClient::Create(std::move(options));
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }

  absl::Status Call(AttentionClient& client) const { return client.Attend(request_).status(); }

  std::vector<int> Calls() const {
    std::vector<int> calls;
    for (const auto& server : servers_) calls.push_back(server->calls());
    return calls;
  }

  // Calls until every server has been called over `connections` connections: from then on no
  // connection comes or goes.
  void WarmUp(AttentionClient& client, size_t connections = 1) {
    for (int n = 0; n < 20'000; ++n) {
      ASSERT_TRUE(Call(client).ok());
      bool warm = true;
      for (const auto& server : servers_) warm = warm && server->connections() == connections;
      if (warm) return;
      absl::SleepFor(absl::Milliseconds(1));
    }
    FAIL() << "not every server was called";
  }

  std::vector<std::unique_ptr<FakeServer>> servers_;
  std::vector<std::string> addresses_;
  std::vector<float> values_ = std::vector<float>(2 * 1 * 8, 0.5f);
  const AttendRequest request_ = {.q = {.shape = {2, 1, 8}, .data = values_.data()},
                                  .k = {.shape = {2, 1, 8}, .data = values_.data()},
                                  .v = {.shape = {2, 1, 8}, .data = values_.data()},
                                  .mask = MaskKind::kFull};
};

TEST_F(LoadBalancingTest, RoundRobinCallsEachInTurn) {
  for (int n = 0; n < 3; ++n) AddServer();
  const auto client = Connect({.load_balancing = LoadBalancing::kRoundRobin});
  WarmUp(*client);
  const std::vector<int> before = Calls();
  for (int round = 1; round <= 5; ++round) {
    for (int n = 0; n < 3; ++n) ASSERT_TRUE(Call(*client).ok());
    for (size_t n = 0; n < 3; ++n) EXPECT_EQ(Calls()[n], before[n] + round) << n;
  }
}

TEST_F(LoadBalancingTest, PickFirstStaysWithOne) {
  for (int n = 0; n < 2; ++n) AddServer();
  const auto client = Connect({});
  for (int n = 0; n < 10; ++n) ASSERT_TRUE(Call(*client).ok());
  EXPECT_THAT(Calls(), testing::UnorderedElementsAre(0, 10));
}

TEST_F(LoadBalancingTest, EveryConnectionReachesEveryAddress) {
  for (int n = 0; n < 2; ++n) AddServer();
  const auto client = Connect({.num_connections = 3, .load_balancing = LoadBalancing::kRoundRobin});
  WarmUp(*client, 3);
}

TEST_F(LoadBalancingTest, AnAddressWithoutServerIsPassedOver) {
  AddServer();
  {
    const FakeServer gone(EchoOnly);
    addresses_.push_back(gone.target());
  }
  const auto client = Connect({.load_balancing = LoadBalancing::kRoundRobin});
  for (int n = 0; n < 10; ++n) {
    const absl::Status status = Call(*client);
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST_F(LoadBalancingTest, UnavailableIsTriedAgainAtTheNext) {
  AddServer();
  AddServer([](int, grpc::ServerContext*, const v1::AttendRequest&, v1::AttendResponse*) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "full");
  });
  const auto client = Connect({.load_balancing = LoadBalancing::kRoundRobin});
  // Until the second was called too.
  for (int n = 0; n < 20'000 && servers_[1]->calls() == 0; ++n) {
    ASSERT_TRUE(Call(*client).ok());
    absl::SleepFor(absl::Milliseconds(1));
  }
  const std::vector<int> before = Calls();
  for (int n = 0; n < 6; ++n) ASSERT_TRUE(Call(*client).ok());
  // Each of the six began at the second, or ended there the turn before.
  EXPECT_EQ(Calls()[0] - before[0], 6);
  EXPECT_GE(Calls()[1] - before[1], 5);
}

TEST_F(LoadBalancingTest, NoCallIsLostWhenAServerStops) {
  for (int n = 0; n < 3; ++n) AddServer();
  const auto client = Connect({.num_connections = 2, .load_balancing = LoadBalancing::kRoundRobin});
  WarmUp(*client, 2);
  std::atomic<bool> stop{false};
  std::array<std::vector<absl::Status>, 3> results;
  std::vector<std::thread> callers;
  for (auto& mine : results) {
    callers.emplace_back([&, out = &mine] {
      while (!stop) out->push_back(Call(*client));
    });
  }
  const auto wait_for_calls = [this](size_t server, int more) {
    const int until = Calls()[server] + more;
    for (int n = 0; n < 100'000 && servers_[server]->calls() < until; ++n) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    EXPECT_GE(servers_[server]->calls(), until);
  };
  wait_for_calls(1, 20);
  servers_.erase(servers_.begin() + 1);
  wait_for_calls(0, 50);
  wait_for_calls(1, 50);
  stop = true;
  for (std::thread& caller : callers) caller.join();
  for (const auto& mine : results) {
    EXPECT_FALSE(mine.empty());
    EXPECT_THAT(mine, Each(absl::OkStatus()));
  }
}

}  // namespace
}  // namespace flashbias::client
