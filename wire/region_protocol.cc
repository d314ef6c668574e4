#include "wire/region_protocol.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"

namespace flashbias::wire {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

constexpr std::string_view kMagic("FBREGN1\0", 8);
constexpr std::string_view kDeviceMagic("FBREGD1\0", 8);
// Descriptors that one packet may bring; a peer that sends more loses them to the kernel.
constexpr size_t kMaxDescriptors = 4;

void Append(uint64_t number, std::string* packet) {
  packet->append(reinterpret_cast<const char*>(&number), sizeof(number));
}

uint64_t NumberAt(std::string_view packet, size_t at) {
  uint64_t number = 0;
  std::memcpy(&number, packet.data() + at, sizeof(number));
  return number;
}

absl::Status Broken(const char* what, int error) {
  return absl::UnavailableError(
      absl::StrCat("the region socket: ", what, ": ",
                   std::error_code(error, std::generic_category()).message()));
}

}  // namespace

sockaddr_un SocketAddress(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  return address;
}

std::string EncodeRegionRequest(const RegionRequest& request) {
  std::string packet(request.offered.has_value() ? kDeviceMagic : kMagic);
  Append(request.bytes, &packet);
  if (request.offered.has_value()) {
    Append(request.offered->offset, &packet);
    Append(0, &packet);
    packet.append(reinterpret_cast<const char*>(request.offered->handle.data()),
                  kDeviceHandleBytes);
    packet.append(reinterpret_cast<const char*>(request.offered->device_uuid.data()),
                  kDeviceUuidBytes);
  }
  return packet;
}

absl::StatusOr<RegionRequest> DecodeRegionRequest(std::string_view packet) {
  const std::string_view magic = packet.substr(0, kMagic.size());
  if (packet.size() == kRegionRequestBytes && magic == kMagic) {
    return RegionRequest{.bytes = NumberAt(packet, 8)};
  }
  if (packet.size() == kDeviceRegionRequestBytes && magic == kDeviceMagic &&
      NumberAt(packet, 24) == 0) {
    RegionRequest request = {.bytes = NumberAt(packet, 8),
                             .offered = OfferedMemory{.offset = NumberAt(packet, 16)}};
    std::memcpy(request.offered->handle.data(), packet.data() + 32, kDeviceHandleBytes);
    std::memcpy(request.offered->device_uuid.data(), packet.data() + 96, kDeviceUuidBytes);
    return request;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "the packet is no region request; accepted: ", kRegionRequestBytes,
      " bytes that begin with FBREGN1, ", kDeviceRegionRequestBytes, " that begin with FBREGD1"));
}

std::string EncodeRegionReply(const RegionReply& reply) {
  std::string packet(kMagic);
  Append(static_cast<uint64_t>(reply.status.code()), &packet);
  Append(reply.id, &packet);
  Append(reply.bytes, &packet);
  packet.append(std::string(reply.status.message()), 0, kRegionReplyMaxText);
  return packet;
}

absl::StatusOr<RegionReply> DecodeRegionReply(std::string_view packet) {
  if (packet.size() < kRegionReplyBytes ||
      packet.size() > kRegionReplyBytes + kRegionReplyMaxText ||
      packet.substr(0, kMagic.size()) != kMagic) {
    return absl::InternalError(absl::StrCat("the region socket answered ", packet.size(),
                                            " bytes that are no region reply"));
  }
  const uint64_t code = NumberAt(packet, 8);
  const bool known = code <= static_cast<uint64_t>(absl::StatusCode::kUnauthenticated);
  RegionReply reply;
  if (code != 0) {
    reply.status =
        absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                     std::string(packet.substr(kRegionReplyBytes)));
  } else {
    reply.id = NumberAt(packet, 16);
    reply.bytes = NumberAt(packet, 24);
  }
  return reply;
}

absl::Status SendPacket(int socket, std::string_view packet, int fd) {
  // The interface has no const; sending only reads.
  iovec bytes = {.iov_base = const_cast<char*>(packet.data()), .iov_len = packet.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control = {};
  msghdr message = {};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  return sent < 0 ? Broken("cannot send", errno) : absl::OkStatus();
}

absl::StatusOr<Packet> ReceivePacket(int socket, size_t max_bytes) {
  Packet packet;
  packet.bytes.resize(max_bytes + 1);
  iovec bytes = {.iov_base = packet.bytes.data(), .iov_len = packet.bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxDescriptors * sizeof(int))> control = {};
  msghdr message = {};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t received = 0;
  do {
    received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  if (received < 0) return Broken("cannot receive", errno);
  packet.bytes.resize(static_cast<size_t>(received));
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t n = 0; n < count; ++n) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + n * sizeof(int), sizeof(fd));
      UniqueFd owned(fd);
      if (!packet.fd.valid()) packet.fd = std::move(owned);
    }
  }
  return packet;
}

}  // namespace flashbias::wire
