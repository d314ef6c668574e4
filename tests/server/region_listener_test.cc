#include "server/region_listener.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "tests/support/process_usage.h"
#include "wire/region_protocol.h"

namespace flashbias::server {
namespace {

using testing::HasSubstr;

class RegionListenerTest : public testing::Test {
 protected:
  RegionListenerTest() {
    options_.path = testing::TempDir() + "/region_listener_test." + std::to_string(getpid());
    options_.max_connections = 8;
  }
  ~RegionListenerTest() override { unlink(options_.path.c_str()); }

  void Start() {
    auto listener = RegionListener::Create(options_, &registry_);
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
  }

  // Blocking; invalid where the kernel refuses it.
  wire::UniqueFd Connect() const {
    wire::UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const timeval patience = {.tv_sec = 10, .tv_usec = 0};
    setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    const sockaddr_un address = wire::SocketAddress(options_.path);
    const int result =
        connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    return result == 0 ? std::move(socket) : wire::UniqueFd();
  }

  // The answer to a packet; empty: the server closed the connection.
  static wire::Packet Exchange(const wire::UniqueFd& socket, const std::string& packet) {
    wire::SendPacket(socket.get(), packet, -1).IgnoreError();
    auto answer = wire::ReceivePacket(socket.get(), 1000);
    return answer.ok() ? *std::move(answer) : wire::Packet();
  }
  static wire::RegionReply Ask(const wire::UniqueFd& socket, uint64_t bytes) {
    const auto reply = wire::DecodeRegionReply(
        Exchange(socket, wire::EncodeRegionRequest({.bytes = bytes})).bytes);
    return reply.ok() ? *reply : wire::RegionReply{.status = reply.status()};
  }

  bool AwaitRegions(int64_t count) const {
    const absl::Time give_up = absl::Now() + absl::Seconds(10);
    while (registry_.usage().regions != count) {
      if (absl::Now() > give_up) return false;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return true;
  }

  RegionListener::Options options_;
  RegionRegistry registry_{{.max_bytes = 1 << 20, .max_peer_bytes = 1 << 20, .max_regions = 4}};
  std::unique_ptr<RegionListener> listener_;
};

TEST_F(RegionListenerTest, AConnectionGetsRegionsAndTheyGoWithIt) {
  Start();
  struct stat file = {};
  ASSERT_EQ(stat(options_.path.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0600u);
  wire::UniqueFd one = Connect();
  const wire::UniqueFd other = Connect();
  const wire::Packet packet = Exchange(one, wire::EncodeRegionRequest({.bytes = 10000}));
  const auto reply = wire::DecodeRegionReply(packet.bytes);
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_TRUE(reply->status.ok()) << reply->status;
  EXPECT_EQ(reply->bytes, 10000u);
  ASSERT_TRUE(packet.fd.valid());
  ASSERT_EQ(fstat(packet.fd.get(), &file), 0);
  EXPECT_EQ(file.st_size, 10000);
  EXPECT_NE(registry_.Find(reply->id), nullptr);
  EXPECT_TRUE(Ask(one, 5).status.ok());
  EXPECT_TRUE(Ask(other, 5).status.ok());
  { const wire::UniqueFd closed = std::move(one); }
  EXPECT_TRUE(AwaitRegions(1)) << "those of the other connection stay";
  EXPECT_EQ(registry_.Find(reply->id), nullptr);
  listener_ = nullptr;
  EXPECT_EQ(registry_.usage().regions, 0);
  EXPECT_NE(stat(options_.path.c_str(), &file), 0) << "the socket goes with its listener";
}

TEST_F(RegionListenerTest, ErrorsAreToldAndTheConnectionGoesOn) {
  Start();
  const wire::UniqueFd socket = Connect();
  EXPECT_EQ(Ask(socket, 0).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(Ask(socket, ~uint64_t{0}).status.message()),
              HasSubstr("limit is 1048576"));
  for (int n = 0; n < 4; ++n) EXPECT_TRUE(Ask(socket, 1).status.ok());
  EXPECT_THAT(std::string(Ask(socket, 1).status.message()), HasSubstr("limit is 4"));
  EXPECT_EQ(registry_.usage().regions, 4);
}

TEST_F(RegionListenerTest, OffersAreServedToo) {
  Start();
  const wire::UniqueFd socket = Connect();
  const wire::RegionRequest offer = {.bytes = 100, .offered = wire::OfferedMemory{}};
  const auto reply =
      wire::DecodeRegionReply(Exchange(socket, wire::EncodeRegionRequest(offer)).bytes);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->status.code(), absl::StatusCode::kFailedPrecondition) << "there is no device";
  EXPECT_TRUE(Ask(socket, 1).status.ok()) << "the connection goes on";
}

TEST_F(RegionListenerTest, GarbageIsRefusedAndEndsTheConnection) {
  Start();
  std::mt19937_64 random(1);
  for (int n = 0; n < 200; ++n) {
    const wire::UniqueFd socket = Connect();
    ASSERT_TRUE(Ask(socket, 1).status.ok());
    std::string garbage(1 + random() % 300, '\0');
    for (char& byte : garbage) byte = static_cast<char>(random());
    const auto reply = wire::DecodeRegionReply(Exchange(socket, garbage).bytes);
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->status.code(), absl::StatusCode::kInvalidArgument);
    const auto after = wire::ReceivePacket(socket.get(), 10);
    EXPECT_TRUE(!after.ok() || after->bytes.empty()) << "closed";
    ASSERT_TRUE(AwaitRegions(0));
  }
}

TEST_F(RegionListenerTest, DescriptorsThatNobodyAskedForAreClosed) {
  Start();
  const wire::UniqueFd socket = Connect();
  EXPECT_FALSE(Ask(socket, 0).status.ok());
  const int before = support::OpenDescriptors();
  ASSERT_TRUE(
      wire::SendPacket(socket.get(), wire::EncodeRegionRequest({.bytes = 0}), STDIN_FILENO).ok());
  ASSERT_TRUE(wire::ReceivePacket(socket.get(), 1000).ok());
  // Once this is answered, the packet before it is done with.
  EXPECT_FALSE(Ask(socket, 0).status.ok());
  EXPECT_EQ(support::OpenDescriptors(), before);
}

TEST_F(RegionListenerTest, ConnectionsBeyondTheLimitAreClosedAndOthersServed) {
  Start();
  std::vector<wire::UniqueFd> silent(7);
  for (wire::UniqueFd& socket : silent) socket = Connect();
  const wire::UniqueFd last = Connect();
  EXPECT_TRUE(Ask(last, 1).status.ok());
  for (int n = 0; n < 300; ++n) {
    const wire::UniqueFd beyond = Connect();
    ASSERT_TRUE(Exchange(beyond, wire::EncodeRegionRequest({.bytes = 1})).bytes.empty());
  }
  silent.clear();
  // The listener sees the ends of the others before or after this one comes.
  bool served = false;
  for (int n = 0; n < 1000 && !served; ++n) served = Ask(Connect(), 1).status.ok();
  EXPECT_TRUE(served);
}

TEST_F(RegionListenerTest, ManyConnectionsLeaveNothing) {
  const int before = support::OpenDescriptors();
  const int mappings = support::MappedRegions();
  Start();
  for (int n = 0; n < 1000; ++n) {
    const wire::UniqueFd socket = Connect();
    if (n % 2 == 0)
      wire::SendPacket(socket.get(), wire::EncodeRegionRequest({.bytes = 1}), -1).IgnoreError();
  }
  EXPECT_TRUE(AwaitRegions(0));
  listener_ = nullptr;
  EXPECT_EQ(registry_.usage().bytes, 0);
  EXPECT_EQ(support::OpenDescriptors(), before);
  EXPECT_EQ(support::MappedRegions(), mappings);
}

TEST_F(RegionListenerTest, OneThatDoesNotReadItsAnswersIsDropped) {
  Start();
  const wire::UniqueFd deaf = Connect();
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  pollfd state = {.fd = deaf.get(), .events = POLLIN, .revents = 0};
  while ((state.revents & POLLHUP) == 0 && absl::Now() < give_up) {
    wire::SendPacket(deaf.get(), wire::EncodeRegionRequest({.bytes = 0}), -1).IgnoreError();
    poll(&state, 1, 0);
  }
  EXPECT_NE(state.revents & POLLHUP, 0);
  const wire::UniqueFd other = Connect();
  EXPECT_TRUE(Ask(other, 1).status.ok()) << "others are served all the while";
}

// Whether a process of `uid` that connects is answered. The socket's mode is opened first: it would
// keep strangers out by itself.
bool IsAnswered(const std::string& path, uid_t uid) {
  chmod(path.c_str(), 0666);
  const pid_t child = fork();
  if (child == 0) {
    const std::string request = wire::EncodeRegionRequest({.bytes = 1});
    const sockaddr_un address = wire::SocketAddress(path);
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (uid != geteuid() && setuid(uid) != 0) _exit(2);
    if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) _exit(3);
    send(fd, request.data(), request.size(), MSG_NOSIGNAL);
    char byte = 0;
    _exit(recv(fd, &byte, 1, 0) == 1 ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) <= 1) << status;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST_F(RegionListenerTest, AnotherUserIsNotAnswered) {
  if (geteuid() != 0) options_.owner = geteuid() + 1;
  Start();
  constexpr uid_t kStranger = 65533;
  EXPECT_FALSE(IsAnswered(options_.path, geteuid() == 0 ? kStranger : geteuid()));
  EXPECT_EQ(registry_.usage().regions, 0);
}

TEST_F(RegionListenerTest, RootIsAnswered) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  options_.owner = 65533;
  Start();
  EXPECT_TRUE(IsAnswered(options_.path, 0));
  EXPECT_TRUE(IsAnswered(options_.path, 65533));
  EXPECT_FALSE(IsAnswered(options_.path, 65532));
}

TEST_F(RegionListenerTest, APathThatIsTakenIsAnError) {
  Start();
  const auto second = RegionListener::Create(options_, &registry_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options_.path));
  EXPECT_TRUE(Ask(Connect(), 1).status.ok()) << "the first keeps it";
}

}  // namespace
}  // namespace flashbias::server
