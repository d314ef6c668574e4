// What a unix socket's path needs before a server listens there.
#ifndef FLASHBIAS_SERVER_UNIX_SOCKET_H_
#define FLASHBIAS_SERVER_UNIX_SOCKET_H_

#include <sys/stat.h>

#include <string>

#include "absl/status/status.h"

namespace flashbias::server {

// Removes the socket that a server left behind when it died. UNAVAILABLE where the path is taken:
// by a server that answers, or by a file that is no socket.
absl::Status RemoveStaleSocket(const std::string& path);

// While it lives, files that the process makes are for their owner only: a socket that is bound
// meanwhile has mode 0600 from its first moment on.
class OwnerOnlyFiles {
 public:
  OwnerOnlyFiles() : before_(umask(S_IXUSR | S_IRWXG | S_IRWXO)) {}
  OwnerOnlyFiles(const OwnerOnlyFiles&) = delete;
  OwnerOnlyFiles& operator=(const OwnerOnlyFiles&) = delete;
  ~OwnerOnlyFiles() { umask(before_); }

 private:
  const mode_t before_;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_UNIX_SOCKET_H_
