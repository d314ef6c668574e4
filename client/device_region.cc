#include "client/device_region.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/region_connection.h"
#include "client/region_map.h"
#include "wire/region_protocol.h"

namespace flashbias::client {
namespace {

// For the server to close the memory: calls in flight end first.
constexpr timeval kReleasePatience = {.tv_sec = 10, .tv_usec = 0};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceRegion>> DeviceRegion::Create(const std::string& unix_path,
                                                                   const DeviceMemoryView& memory,
                                                                   absl::Duration timeout,
                                                                   std::shared_ptr<RegionMap> map) {
  if (memory.data == nullptr) {
    return absl::InvalidArgumentError("data is null; accepted: an address on a device");
  }
  wire::RegionRequest request = {.bytes = memory.bytes,
                                 .offered = wire::OfferedMemory{.offset = memory.offset}};
  if (memory.ipc_handle.size() != request.offered->handle.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ipc_handle has ", memory.ipc_handle.size(), " bytes; accepted: the ",
                     request.offered->handle.size(), " of a cudaIpcMemHandle_t"));
  }
  std::copy(memory.ipc_handle.begin(), memory.ipc_handle.end(), request.offered->handle.begin());
  absl::StatusOr<GrantedRegion> granted = AskForRegion(unix_path, request, timeout);
  if (!granted.ok()) return granted.status();
  if (!map->Add(memory.data, memory.bytes, granted->id, /*on_device=*/true)) {
    return absl::InvalidArgumentError(
        absl::StrCat("data and the ", memory.bytes,
                     " bytes from there on overlap a region of this client's; accepted: memory "
                     "that is in none"));
  }
  return std::unique_ptr<DeviceRegion>(new DeviceRegion(granted->connection.Release(), memory.data,
                                                        memory.bytes, granted->id, std::move(map)));
}

DeviceRegion::DeviceRegion(int connection, void* data, size_t size, uint64_t id,
                           std::shared_ptr<RegionMap> map)
    : connection_(connection), data_(data), size_(size), id_(id), map_(std::move(map)) {}

DeviceRegion::~DeviceRegion() {
  map_->Remove(data_);
  shutdown(connection_, SHUT_WR);
  setsockopt(connection_, SOL_SOCKET, SO_RCVTIMEO, &kReleasePatience, sizeof(kReleasePatience));
  // Nothing comes but the end.
  char nothing = 0;
  while (recv(connection_, &nothing, 1, 0) < 0 && errno == EINTR) {
  }
  close(connection_);
}

}  // namespace flashbias::client
