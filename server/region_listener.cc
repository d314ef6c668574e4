#include "server/region_listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/log.h"
#include "server/unix_socket.h"
#include "wire/region_protocol.h"

namespace flashbias::server {
namespace {

// After accept has failed, for want of descriptors: it would fail again at once.
constexpr absl::Duration kAcceptPause = absl::Milliseconds(100);

absl::Status CannotListen(const std::string& path, int error) {
  return absl::UnavailableError(
      absl::StrCat("the region socket '", path, "': cannot listen there (",
                   std::error_code(error, std::generic_category()).message(), ")"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RegionListener>> RegionListener::Create(const Options& options,
                                                                       RegionRegistry* registry) {
  if (absl::Status free = RemoveStaleSocket(options.path); !free.ok()) return free;
  wire::UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  wire::UniqueFd stop(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!listener.valid() || !stop.valid()) return CannotListen(options.path, errno);
  const sockaddr_un address = wire::SocketAddress(options.path);
  {
    const OwnerOnlyFiles socket_mode;
    if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
      return CannotListen(options.path, errno);
    }
  }
  if (listen(listener.get(), SOMAXCONN) != 0) {
    const int error = errno;
    unlink(options.path.c_str());
    return CannotListen(options.path, error);
  }
  return std::unique_ptr<RegionListener>(
      new RegionListener(options, registry, std::move(listener), std::move(stop)));
}

RegionListener::RegionListener(Options options, RegionRegistry* registry, wire::UniqueFd listener,
                               wire::UniqueFd stop)
    : options_(std::move(options)),
      registry_(registry),
      listener_(std::move(listener)),
      stop_(std::move(stop)),
      thread_([this] { Loop(); }) {}

RegionListener::~RegionListener() {
  const uint64_t one = 1;
  // Cannot fail: the counter is far from full.
  [[maybe_unused]] const ssize_t written = write(stop_.get(), &one, sizeof(one));
  thread_.join();
  unlink(options_.path.c_str());
  for (const auto& [fd, connection] : connections_) Close(connection);
}

void RegionListener::Loop() {
  std::vector<pollfd> waits;
  while (true) {
    const absl::Time now = absl::Now();
    const bool accepting = now >= accept_again_;
    waits.clear();
    waits.push_back({.fd = stop_.get(), .events = POLLIN, .revents = 0});
    // poll leaves out negative descriptors.
    waits.push_back({.fd = accepting ? listener_.get() : -1, .events = POLLIN, .revents = 0});
    for (const auto& [fd, connection] : connections_) {
      waits.push_back({.fd = fd, .events = POLLIN, .revents = 0});
    }
    const int timeout = accepting ? -1 : static_cast<int>(absl::ToInt64Milliseconds(kAcceptPause));
    if (poll(waits.data(), waits.size(), timeout) < 0) continue;  // a signal
    if (waits[0].revents != 0) return;
    for (size_t n = 2; n < waits.size(); ++n) {
      if (waits[n].revents == 0) continue;
      const auto found = connections_.find(waits[n].fd);
      if (Serve(&found->second)) continue;
      Close(found->second);
      connections_.erase(found);
    }
    if (waits[1].revents != 0) Accept();
  }
}

void RegionListener::Accept() {
  wire::UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) {
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
    accept_again_ = absl::Now() + kAcceptPause;
    Log(LogLevel::kWarning, "region socket",
        {{"accept", std::error_code(errno, std::generic_category()).message()}});
    return;
  }
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return;
  if (peer.uid != options_.owner && peer.uid != 0) {
    Log(LogLevel::kWarning, "region socket", {{"refused_uid", peer.uid}});
    return;
  }
  if (connections_.size() >= options_.max_connections) {
    Log(LogLevel::kDebug, "region socket", {{"refused_beyond", options_.max_connections}});
    return;
  }
  const int fd = socket.get();
  connections_.emplace(fd,
                       Connection{.socket = std::move(socket), .peer = peer.pid, .regions = {}});
}

bool RegionListener::Serve(Connection* connection) {
  const int socket = connection->socket.get();
  const absl::StatusOr<wire::Packet> packet =
      wire::ReceivePacket(socket, wire::kDeviceRegionRequestBytes);
  if (!packet.ok() || packet->bytes.empty()) return false;
  const absl::StatusOr<wire::RegionRequest> request = wire::DecodeRegionRequest(packet->bytes);
  if (!request.ok()) {
    wire::SendPacket(socket, wire::EncodeRegionReply({.status = request.status()}), -1)
        .IgnoreError();
    return false;
  }
  wire::UniqueFd memory;
  const absl::StatusOr<uint64_t> id = Grant(*connection, *request, &memory);
  if (!id.ok()) {
    return wire::SendPacket(socket, wire::EncodeRegionReply({.status = id.status()}), -1).ok();
  }
  connection->regions.push_back(*id);
  // Fails where the process is gone or does not read its answers.
  return wire::SendPacket(socket, wire::EncodeRegionReply({.id = *id, .bytes = request->bytes}),
                          memory.get())
      .ok();
}

absl::StatusOr<uint64_t> RegionListener::Grant(const Connection& connection,
                                               const wire::RegionRequest& request,
                                               wire::UniqueFd* memory) {
  if (!request.offered.has_value()) {
    absl::StatusOr<RegionRegistry::NewRegion> made =
        registry_->Make(connection.peer, request.bytes);
    if (!made.ok()) return made.status();
    *memory = std::move(made->fd);
    return made->id;
  }
  // The connection's other end sees it close when the last holder of the region has let go.
  wire::UniqueFd released(fcntl(connection.socket.get(), F_DUPFD_CLOEXEC, 0));
  if (!released.valid()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a descriptor for the region: ",
                     std::error_code(errno, std::generic_category()).message()));
  }
  return registry_->Open(*request.offered, request.bytes, std::move(released));
}

void RegionListener::Close(const Connection& connection) {
  for (const uint64_t id : connection.regions) registry_->Withdraw(id);
}

}  // namespace flashbias::server
