// Every setting and limit of the server, validated once.
//
// Thread-safety: a plain value. server/flags.h makes one from the command line; the comments there
// are the help texts.
#ifndef FLASHBIAS_SERVER_OPTIONS_H_
#define FLASHBIAS_SERVER_OPTIONS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/scheduler.h"

namespace flashbias::server {

enum class SharedMemory { kAuto, kOn, kOff };

struct ServerOptions {
  std::string listen_address = "0.0.0.0:8471";  // host:port; port 0 picks a free one
  std::string listen_unix = "";  // path of a unix socket that is served too; empty: none
  std::string metrics_address = "0.0.0.0:8472";  // host:port as above; empty: no metrics endpoint

  SchedulerOptions scheduler = {
      .batch = {.max_work = int64_t{1} << 26,
                .max_bytes = int64_t{256} << 20,
                .max_requests = 64,
                .worthwhile_bytes = int64_t{1} << 20,
                .max_queue_delay = absl::Milliseconds(2)},
      .max_queue_requests = 1024,
      .max_queue_bytes = int64_t{2} << 30,
      .start_at_once = true,
  };

  int64_t max_message_bytes = int64_t{512}
                              << 20;  // of a request and of a response; 1 KiB to 2^31 - 1
  // Host memory, inputs and outputs, that all streams together may hold; 1 MiB to 2^48.
  int64_t max_stream_bytes = int64_t{8} << 30;
  int64_t max_sequences = 65536;  // of one request; 1 to 65536
  // That copy one large request at once. 0: a quarter of the hardware threads, 1 to 8.
  int copy_threads = 0;               // 0 to 64
  int max_concurrent_streams = 1024;  // calls at once on one connection; at least 1

  absl::Duration keepalive_time = absl::Minutes(1);      // ping a silent client after; at least 1 s
  absl::Duration keepalive_timeout = absl::Seconds(20);  // and drop it after; at least 1 s
  absl::Duration min_ping_interval = absl::Seconds(10);  // clients that ping more often are dropped
  // Connections are closed at this age, give or take a tenth: new calls go to another one, those in
  // flight have the grace to end. The age 1 s to 24 h, the grace 0 to 24 h; either infinite.
  absl::Duration max_connection_age = absl::InfiniteDuration();
  absl::Duration max_connection_age_grace = absl::Seconds(30);

  // Memory shared with callers over listen_unix. kAuto: on where listen_unix is set; kOn without it
  // is refused.
  SharedMemory shared_memory = SharedMemory::kAuto;
  int64_t max_region_bytes = int64_t{4} << 30;       // of all regions; at least 4096
  int64_t max_peer_region_bytes = int64_t{2} << 30;  // of one process; at least 4096
  int64_t max_regions = 1024;                        // 1 to 65536

  bool reflection = true;  // serve grpc.reflection
};

// INVALID_ARGUMENT naming the option, its value and what is accepted.
absl::Status Validate(const ServerOptions& options);

bool SharedMemoryIsOn(const ServerOptions& options);
// The socket on which callers ask for shared memory. REQUIRES: SharedMemoryIsOn.
std::string RegionSocketPath(const ServerOptions& options);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_OPTIONS_H_
