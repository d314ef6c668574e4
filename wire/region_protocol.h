// How a client on the same host gets memory that it shares with the server.
//
// Beside the unix socket PATH the server listens on PATH.regions, a SOCK_SEQPACKET socket. Each
// packet of the client asks for one region, each is answered by one packet, in order; numbers are
// little-endian:
//
//   request, 16 bytes            reply, 32 bytes and a text of at most 512
//    0  "FBREGN1\0"               0  "FBREGN1\0"
//    8  uint64 bytes              8  uint64 status, a gRPC code; 0 is OK
//                                16  uint64 region id, never 0; OK only
//                                24  uint64 bytes of the region; OK only
//                                32  the error's text; errors only
//
// An OK reply carries one descriptor (SCM_RIGHTS): a memfd of exactly that many bytes, sealed
// against growing and shrinking.
//
// A client may offer memory of its own on the server's device instead. The reply is the same,
// without a descriptor:
//
//   request, 112 bytes
//    0  "FBREGD1\0"
//    8  uint64 bytes of the region
//   16  uint64 where it begins in its allocation, a multiple of 4
//   24  uint64 0
//   32  the allocation's handle: a cudaIpcMemHandle_t
//   96  the UUID of the device that it is on; zeroes: not known
//
// After an error the connection can be used on; after a packet that is no request the server
// answers with INVALID_ARGUMENT and closes it. Regions live until their connection is closed or
// shut down for writing, by either side or by the death of the process that made it. The server
// closes its side of such a connection once none of the offered memory is in use any more: then the
// client may free it.
//
// Thread-safety: free functions. Errors are values; nothing here waits, except Receive on a
// blocking socket.
#ifndef FLASHBIAS_WIRE_REGION_PROTOCOL_H_
#define FLASHBIAS_WIRE_REGION_PROTOCOL_H_

#include <sys/un.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "wire/unique_fd.h"

namespace flashbias::wire {

// What is put behind the path of the server's unix socket.
inline constexpr char kRegionSocketSuffix[] = ".regions";
inline constexpr size_t kRegionRequestBytes = 16;
inline constexpr size_t kDeviceRegionRequestBytes = 112;
inline constexpr size_t kDeviceHandleBytes = 64;
inline constexpr size_t kDeviceUuidBytes = 16;
inline constexpr size_t kRegionReplyBytes = 32;
inline constexpr size_t kRegionReplyMaxText = 512;

// Memory of the client's on the server's device.
struct OfferedMemory {
  uint64_t offset = 0;  // in its allocation
  std::array<uint8_t, kDeviceHandleBytes> handle = {};
  std::array<uint8_t, kDeviceUuidBytes> device_uuid = {};  // zeroes: not known
};

struct RegionRequest {
  uint64_t bytes = 0;
  std::optional<OfferedMemory> offered = {};  // nullopt: the server is to make it
};

struct RegionReply {
  absl::Status status = {};
  uint64_t id = 0;
  uint64_t bytes = 0;
};

// REQUIRES: `path` fits a sockaddr_un.
sockaddr_un SocketAddress(const std::string& path);

std::string EncodeRegionRequest(const RegionRequest& request);
// INVALID_ARGUMENT: the packet is no request.
absl::StatusOr<RegionRequest> DecodeRegionRequest(std::string_view packet);
std::string EncodeRegionReply(const RegionReply& reply);
// INTERNAL: the packet is no reply.
absl::StatusOr<RegionReply> DecodeRegionReply(std::string_view packet);

// Sends one packet, with a descriptor where `fd` is one. UNAVAILABLE: the other end is gone or does
// not read.
absl::Status SendPacket(int socket, std::string_view packet, int fd);

struct Packet {
  std::string bytes = {};  // empty: the other end closed the connection
  UniqueFd fd = {};        // the first descriptor that came; others are closed
};
// Receives one packet; longer ones than `max_bytes` come as max_bytes + 1 bytes. UNAVAILABLE: the
// connection broke, or the socket's timeout passed.
absl::StatusOr<Packet> ReceivePacket(int socket, size_t max_bytes);

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_REGION_PROTOCOL_H_
