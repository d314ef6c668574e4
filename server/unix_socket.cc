#include "server/unix_socket.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace flashbias::server {
namespace {

absl::Status Taken(const std::string& path, const std::string& why) {
  return absl::UnavailableError(
      absl::StrCat("listen_unix is '", path, "': cannot listen there (", why, ")"));
}

std::string ErrorText(int error) {
  return std::error_code(error, std::generic_category()).message();
}

// 0: somebody answers there; otherwise connect's errno. Never waits.
int TryConnect(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return errno;
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int result = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int error = result == 0 ? 0 : errno;
  close(fd);
  return error;
}

}  // namespace

absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat file = {};
  if (lstat(path.c_str(), &file) != 0) {
    return errno == ENOENT ? absl::OkStatus() : Taken(path, ErrorText(errno));
  }
  if (!S_ISSOCK(file.st_mode)) return Taken(path, "the file there is no socket");
  // Refused: the socket is nobody's. A full backlog (EAGAIN) has somebody behind it.
  const int error = TryConnect(path);
  if (error == 0 || error == EAGAIN) return Taken(path, "a server listens there");
  if (error != ECONNREFUSED) return Taken(path, ErrorText(error));
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return Taken(path, ErrorText(errno));
  return absl::OkStatus();
}

}  // namespace flashbias::server
