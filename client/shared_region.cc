#include "client/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/region_map.h"
#include "wire/region_protocol.h"
#include "wire/unique_fd.h"

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

// What came must be what the protocol promises, or touching it could end the process.
absl::Status CheckMemory(const wire::UniqueFd& fd, uint64_t bytes) {
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  struct stat file = {};
  const bool good = fd.valid() && fstat(fd.get(), &file) == 0 &&
                    static_cast<uint64_t>(file.st_size) == bytes &&
                    (fcntl(fd.get(), F_GET_SEALS) & kSeals) == kSeals;
  return good ? absl::OkStatus()
              : absl::InternalError(
                    absl::StrCat("the server's region is no sealed memory of ", bytes, " bytes"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedRegion>> SharedRegion::Create(const std::string& unix_path,
                                                                   size_t bytes,
                                                                   absl::Duration timeout,
                                                                   std::shared_ptr<RegionMap> map) {
  absl::StatusOr<wire::UniqueFd> connection =
      Connect(absl::StrCat(unix_path, wire::kRegionSocketSuffix), timeout);
  if (!connection.ok()) return connection.status();
  absl::Status sent =
      wire::SendPacket(connection->get(), wire::EncodeRegionRequest(bytes), /*fd=*/-1);
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
  if (reply->bytes != bytes || reply->id == 0) {
    return absl::InternalError(
        absl::StrCat("the server made a region of ", reply->bytes, " bytes; expected: ", bytes));
  }
  absl::Status good = CheckMemory(packet->fd, bytes);
  if (!good.ok()) return good;
  // The pages exist; populated, they cost no fault at first touch.
  void* const data =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, packet->fd.get(), 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("mapping a region of ", bytes, " bytes: ", ErrorText(errno)));
  }
  return std::unique_ptr<SharedRegion>(new SharedRegion(
      connection->Release(), static_cast<char*>(data), bytes, reply->id, std::move(map)));
}

SharedRegion::SharedRegion(int connection, char* data, size_t size, uint64_t id,
                           std::shared_ptr<RegionMap> map)
    : connection_(connection), data_(data), size_(size), id_(id), map_(std::move(map)) {
  map_->Add(data_, size_, id_);
}

SharedRegion::~SharedRegion() {
  map_->Remove(data_);
  munmap(data_, size_);
  close(connection_);
}

}  // namespace flashbias::client
