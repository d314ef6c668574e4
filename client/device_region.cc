#include "client/device_region.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/region_connection.h"
#include "client/region_map.h"
#include "wire/region_protocol.h"

namespace flashbias::client {
namespace {

// Of one call to poll.
constexpr absl::Duration kLongestWait = absl::Hours(1);

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
  if (!memory.device_uuid.empty()) {
    if (memory.device_uuid.size() != request.offered->device_uuid.size()) {
      return absl::InvalidArgumentError(absl::StrCat("device_uuid has ", memory.device_uuid.size(),
                                                     " bytes; accepted: none or ",
                                                     request.offered->device_uuid.size()));
    }
    std::copy(memory.device_uuid.begin(), memory.device_uuid.end(),
              request.offered->device_uuid.begin());
  }
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
  static_cast<void>(Release(absl::InfiniteDuration()));
  close(connection_);
}

absl::Status DeviceRegion::Release(absl::Duration timeout) {
  if (released_) return absl::OkStatus();
  map_->Remove(data_);
  shutdown(connection_, SHUT_WR);
  const absl::Time give_up = absl::Now() + timeout;
  for (;;) {
    const absl::Duration left =
        std::clamp(give_up - absl::Now(), absl::ZeroDuration(), kLongestWait);
    pollfd end = {.fd = connection_, .events = POLLIN, .revents = 0};
    const int ready = poll(&end, 1, static_cast<int>(absl::ToInt64Milliseconds(left)));
    if (ready < 0 && errno == EINTR) continue;
    // Nothing comes but the end.
    if (ready != 0) break;
    if (absl::Now() >= give_up) {
      return absl::DeadlineExceededError("the server still uses the region's memory");
    }
  }
  released_ = true;
  return absl::OkStatus();
}

}  // namespace flashbias::client
