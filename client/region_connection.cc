#include "client/region_connection.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flashbias::client {
namespace {

std::string ErrorText(int error) {
  return std::error_code(error, std::generic_category()).message();
}

absl::StatusOr<wire::UniqueFd> Connect(const std::string& path, absl::Duration timeout) {
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("the region socket '", path, "' has ",
                                                   path.size(), " bytes; accepted: at most ",
                                                   sizeof(sockaddr_un::sun_path) - 1));
  }
  wire::UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) {
    return absl::ResourceExhaustedError(absl::StrCat("a socket: ", ErrorText(errno)));
  }
  if (timeout != absl::InfiniteDuration()) {
    const timeval limit = absl::ToTimeval(timeout);
    setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  }
  const sockaddr_un address = wire::SocketAddress(path);
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return absl::UnavailableError(absl::StrCat("the region socket '", path, "': ", ErrorText(errno),
                                               " (is the server's shared memory on?)"));
  }
  return socket;
}

}  // namespace

absl::StatusOr<GrantedRegion> AskForRegion(const std::string& unix_path,
                                           const wire::RegionRequest& request,
                                           absl::Duration timeout) {
  absl::StatusOr<wire::UniqueFd> connection =
      Connect(absl::StrCat(unix_path, wire::kRegionSocketSuffix), timeout);
  if (!connection.ok()) return connection.status();
  absl::Status sent =
      wire::SendPacket(connection->get(), wire::EncodeRegionRequest(request), /*fd=*/-1);
  if (!sent.ok()) return sent;
  absl::StatusOr<wire::Packet> packet =
      wire::ReceivePacket(connection->get(), wire::kRegionReplyBytes + wire::kRegionReplyMaxText);
  if (!packet.ok()) return packet.status();
  if (packet->bytes.empty()) {
    return absl::UnavailableError(
        "the region socket was closed: by a server that shuts down, has too many connections or "
        "runs as another user");
  }
  const absl::StatusOr<wire::RegionReply> reply = wire::DecodeRegionReply(packet->bytes);
  if (!reply.ok()) return reply.status();
  if (!reply->status.ok()) return reply->status;
  if (reply->bytes != request.bytes || reply->id == 0) {
    return absl::InternalError(absl::StrCat("the server made a region of ", reply->bytes,
                                            " bytes; expected: ", request.bytes));
  }
  return GrantedRegion{
      .connection = *std::move(connection), .id = reply->id, .memory = std::move(packet->fd)};
}

}  // namespace flashbias::client
