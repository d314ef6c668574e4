// The socket on which callers ask for regions (wire/region_protocol.h).
//
// One thread serves all connections: it makes a region for each request and withdraws a
// connection's regions when that closes, however the process at its other end came to its end.
// Connections whose process runs as neither the socket's owner nor root are closed unanswered, and
// so are those beyond max_connections.
//
// Thread-safety: construction and destruction only. Ownership: the registry must outlive the
// listener; the socket's file goes with it.
#ifndef FLASHBIAS_SERVER_REGION_LISTENER_H_
#define FLASHBIAS_SERVER_REGION_LISTENER_H_

#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/region_registry.h"
#include "wire/region_protocol.h"
#include "wire/unique_fd.h"

namespace flashbias::server {

class RegionListener {
 public:
  struct Options {
    std::string path;            // of the socket; made with mode 0600
    uid_t owner = geteuid();     // whose processes may ask, beside root's
    size_t max_connections = 1;  // at least 1
  };

  // UNAVAILABLE naming the path: it is taken, or nothing can be made there.
  static absl::StatusOr<std::unique_ptr<RegionListener>> Create(const Options& options,
                                                                RegionRegistry* registry);
  RegionListener(const RegionListener&) = delete;
  RegionListener& operator=(const RegionListener&) = delete;
  // Closes all connections and withdraws their regions.
  ~RegionListener();

 private:
  struct Connection {
    wire::UniqueFd socket;
    pid_t peer = 0;
    std::vector<uint64_t> regions;
  };

  RegionListener(Options options, RegionRegistry* registry, wire::UniqueFd listener,
                 wire::UniqueFd stop);

  void Loop();
  void Accept();
  // Serves one packet; false: the connection has ended.
  bool Serve(Connection* connection);
  // Makes or opens the region. `memory` gets the descriptor that goes with the reply, if any.
  absl::StatusOr<uint64_t> Grant(const Connection& connection, const wire::RegionRequest& request,
                                 wire::UniqueFd* memory);
  void Close(const Connection& connection);

  // Constant after construction.
  const Options options_;
  RegionRegistry* const registry_;
  const wire::UniqueFd listener_;
  const wire::UniqueFd stop_;  // an eventfd

  // Used by the thread only.
  std::map<int, Connection> connections_;  // by descriptor
  absl::Time accept_again_ = absl::InfinitePast();

  std::thread thread_;  // last: it uses what stands above
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_REGION_LISTENER_H_
