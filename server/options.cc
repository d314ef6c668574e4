#include "server/options.h"

#include <sys/un.h>

#include <limits>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/attend_validation.h"
#include "wire/region_protocol.h"

namespace flashbias::server {
namespace {

// No overflow is near where sizes of this order are added up.
constexpr int64_t kMaxRegionBytes = int64_t{1} << 48;

absl::Status CheckAddress(const char* name, const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon != std::string::npos && colon > 0 &&
      absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 && port <= 65535) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is '", address, "'; accepted: host:port, with port 0 to 65535"));
}

// What a sockaddr_un holds, its final zero left out; empty: no socket.
absl::Status CheckSocketPath(const char* name, const std::string& path, bool with_regions) {
  constexpr size_t kMaxPath = sizeof(sockaddr_un::sun_path) - 1;
  const size_t max = with_regions ? kMaxPath - (sizeof(wire::kRegionSocketSuffix) - 1) : kMaxPath;
  // gRPC decodes % sequences in addresses.
  if (path.size() <= max && path.find('\0') == std::string::npos &&
      path.find('%') == std::string::npos) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      name, " is '", path, "', ", path.size(), " bytes; accepted: a path without % of at most ",
      max, with_regions ? absl::StrCat(", or ", kMaxPath, " with shared_memory off") : ""));
}

absl::Status CheckSharedMemory(const ServerOptions& options) {
  if (options.shared_memory == SharedMemory::kOn && options.listen_unix.empty()) {
    return absl::InvalidArgumentError(
        "shared_memory is on and listen_unix is empty; accepted: a path there, or off or auto");
  }
  return absl::OkStatus();
}

absl::Status CheckRange(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; accepted: ", min, " to ", max));
}

// gRPC takes these as int milliseconds.
absl::Status CheckDuration(const char* name, absl::Duration value, absl::Duration min) {
  const absl::Duration max = absl::Hours(24);
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", absl::FormatDuration(value),
                                                 "; accepted: ", absl::FormatDuration(min), " to ",
                                                 absl::FormatDuration(max)));
}

absl::Status CheckDurationOrNever(const char* name, absl::Duration value, absl::Duration min) {
  if (value == absl::InfiniteDuration()) return absl::OkStatus();
  absl::Status finite = CheckDuration(name, value, min);
  if (finite.ok()) return finite;
  return absl::InvalidArgumentError(absl::StrCat(finite.message(), ", or inf"));
}

}  // namespace

absl::Status Validate(const ServerOptions& options) {
  const SchedulerOptions& scheduler = options.scheduler;
  for (const absl::Status& status : {
           CheckAddress("listen_address", options.listen_address),
           CheckSocketPath("listen_unix", options.listen_unix, SharedMemoryIsOn(options)),
           CheckSharedMemory(options),
           CheckRange("max_region_bytes", options.max_region_bytes, 4096, kMaxRegionBytes),
           CheckRange("max_peer_region_bytes", options.max_peer_region_bytes, 4096,
                      kMaxRegionBytes),
           CheckRange("max_regions", options.max_regions, 1, 65536),
           options.metrics_address.empty()
               ? absl::OkStatus()
               : CheckAddress("metrics_address", options.metrics_address),
           Validate(scheduler),
           CheckRange("max_message_bytes", options.max_message_bytes, 1024,
                      std::numeric_limits<int32_t>::max()),
           CheckRange("max_stream_bytes", options.max_stream_bytes, int64_t{1} << 20,
                      int64_t{1} << 48),
           CheckRange("max_sequences", options.max_sequences, 1, kMaxSequences),
           CheckRange("copy_threads", options.copy_threads, 0, 64),
           CheckRange("max_concurrent_streams", options.max_concurrent_streams, 1,
                      std::numeric_limits<int32_t>::max()),
           CheckDuration("keepalive_time", options.keepalive_time, absl::Seconds(1)),
           CheckDuration("keepalive_timeout", options.keepalive_timeout, absl::Seconds(1)),
           CheckDuration("min_ping_interval", options.min_ping_interval, absl::ZeroDuration()),
           CheckDurationOrNever("max_connection_age", options.max_connection_age, absl::Seconds(1)),
           CheckDurationOrNever("max_connection_age_grace", options.max_connection_age_grace,
                                absl::ZeroDuration()),
       }) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

bool SharedMemoryIsOn(const ServerOptions& options) {
  return options.shared_memory != SharedMemory::kOff && !options.listen_unix.empty();
}

std::string RegionSocketPath(const ServerOptions& options) {
  return absl::StrCat(options.listen_unix, wire::kRegionSocketSuffix);
}

}  // namespace flashbias::server
