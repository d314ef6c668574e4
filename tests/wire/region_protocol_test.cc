#include "wire/region_protocol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <string>
#include <utility>

#include "tests/support/process_usage.h"

namespace flashbias::wire {
namespace {

using testing::HasSubstr;

struct SocketPair {
  SocketPair() {
    int fds[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    here = UniqueFd(fds[0]);
    there = UniqueFd(fds[1]);
  }
  UniqueFd here, there;
};

TEST(RegionProtocolTest, RequestsGoThereAndBack) {
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1} << 20, ~uint64_t{0}}) {
    const std::string packet = EncodeRegionRequest({.bytes = bytes});
    EXPECT_EQ(packet.size(), kRegionRequestBytes);
    const auto decoded = DecodeRegionRequest(packet);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(decoded->bytes, bytes);
    EXPECT_FALSE(decoded->offered.has_value());
  }
}

RegionRequest Offer() {
  RegionRequest request = {.bytes = 1 << 20, .offered = OfferedMemory{.offset = ~uint64_t{0} - 3}};
  for (size_t n = 0; n < kDeviceHandleBytes; ++n) {
    request.offered->handle[n] = static_cast<uint8_t>(200 + n);
  }
  for (size_t n = 0; n < kDeviceUuidBytes; ++n) {
    request.offered->device_uuid[n] = static_cast<uint8_t>(100 + n);
  }
  return request;
}

TEST(RegionProtocolTest, OffersGoThereAndBack) {
  const std::string packet = EncodeRegionRequest(Offer());
  EXPECT_EQ(packet.size(), kDeviceRegionRequestBytes);
  const auto decoded = DecodeRegionRequest(packet);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->bytes, uint64_t{1} << 20);
  ASSERT_TRUE(decoded->offered.has_value());
  EXPECT_EQ(decoded->offered->offset, ~uint64_t{0} - 3);
  EXPECT_EQ(decoded->offered->handle, Offer().offered->handle);
  EXPECT_EQ(decoded->offered->device_uuid, Offer().offered->device_uuid);
}

TEST(RegionProtocolTest, WhatIsNoRequestIsRefused) {
  std::string wrong = EncodeRegionRequest({.bytes = 7});
  wrong[3] ^= 1;
  std::string reserved = EncodeRegionRequest(Offer());
  reserved[24] = 1;
  std::string mixed = EncodeRegionRequest(Offer());
  mixed[5] = 'N';
  for (const std::string& packet :
       {std::string(), std::string("GET / HTTP"), EncodeRegionRequest({.bytes = 7}).substr(1),
        EncodeRegionRequest({.bytes = 7}) + "x", wrong, reserved, mixed,
        EncodeRegionRequest(Offer()).substr(0, 16), EncodeRegionRequest(Offer()) + "x"}) {
    const auto decoded = DecodeRegionRequest(packet);
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(
        std::string(decoded.status().message()),
        HasSubstr("accepted: 16 bytes that begin with FBREGN1, 112 that begin with FBREGD1"));
  }
}

TEST(RegionProtocolTest, RepliesGoThereAndBack) {
  const auto good = DecodeRegionReply(EncodeRegionReply({.id = 77, .bytes = 4096}));
  ASSERT_TRUE(good.ok());
  EXPECT_TRUE(good->status.ok());
  EXPECT_EQ(good->id, 77u);
  EXPECT_EQ(good->bytes, 4096u);

  const absl::Status error = absl::ResourceExhaustedError(std::string(3000, 'x'));
  const auto bad = DecodeRegionReply(EncodeRegionReply({.status = error}));
  ASSERT_TRUE(bad.ok());
  EXPECT_EQ(bad->status, absl::ResourceExhaustedError(std::string(kRegionReplyMaxText, 'x')));
}

TEST(RegionProtocolTest, WhatIsNoReplyIsRefused) {
  const std::string reply = EncodeRegionReply({.id = 77, .bytes = 4096});
  for (const std::string& packet :
       {std::string(), reply.substr(1), reply + std::string(600, 'x'), std::string(32, 'x')}) {
    EXPECT_EQ(DecodeRegionReply(packet).status().code(), absl::StatusCode::kInternal);
  }
}

TEST(RegionProtocolTest, PacketsBringDescriptorsAndLeaveNone) {
  const int before = support::OpenDescriptors();
  {
    SocketPair sockets;
    const UniqueFd event(eventfd(0, EFD_CLOEXEC));
    ASSERT_TRUE(SendPacket(sockets.here.get(), "hello", event.get()).ok());
    auto packet = ReceivePacket(sockets.there.get(), 5);
    ASSERT_TRUE(packet.ok()) << packet.status();
    EXPECT_EQ(packet->bytes, "hello");
    ASSERT_TRUE(packet->fd.valid());
    EXPECT_NE(packet->fd.get(), event.get());
    // One that nobody asked for goes with its packet.
    ASSERT_TRUE(SendPacket(sockets.here.get(), "too long", event.get()).ok());
    packet = ReceivePacket(sockets.there.get(), 5);
    ASSERT_TRUE(packet.ok());
    EXPECT_EQ(packet->bytes.size(), 6u) << "longer than was asked for, and seen to be";
    sockets.here = UniqueFd();
  }
  EXPECT_EQ(support::OpenDescriptors(), before);
}

TEST(RegionProtocolTest, AnOtherEndThatIsGoneOrDoesNotReadIsUnavailable) {
  SocketPair sockets;
  absl::Status status;
  for (int n = 0; n < 100000 && status.ok(); ++n) {
    status = SendPacket(sockets.here.get(), "hello", -1);
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << "the other end does not read";
  { const UniqueFd closed = std::move(sockets.there); }
  EXPECT_EQ(SendPacket(sockets.here.get(), "hello", -1).code(), absl::StatusCode::kUnavailable);
  const auto packet = ReceivePacket(sockets.here.get(), 5);
  EXPECT_TRUE(!packet.ok() || packet->bytes.empty());
}

}  // namespace
}  // namespace flashbias::wire
