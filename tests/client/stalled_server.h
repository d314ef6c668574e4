// A TCP server that speaks just enough HTTP/2 to be sent a request and then reads nothing, so that
// the client's writes stay unfinished until the server goes.
#ifndef FLASHBIAS_TESTS_CLIENT_STALLED_SERVER_H_
#define FLASHBIAS_TESTS_CLIENT_STALLED_SERVER_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace flashbias::client {

class StalledServer {
 public:
  StalledServer() {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(listen(listener_, 8), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Greet(); });
  }
  ~StalledServer() { Stop(); }

  std::string target() const { return absl::StrCat("127.0.0.1:", port_); }

  // Closes the connection.
  void Stop() {
    if (!thread_.joinable()) return;
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
    if (connection_ >= 0) close(connection_);
  }

 private:
  void Greet() {
    connection_ = accept(listener_, nullptr, nullptr);
    if (connection_ < 0) return;
    // SETTINGS with an initial window of 2^31 - 1, and a WINDOW_UPDATE that makes the connection's
    // as large: nothing but the socket holds the client back.
    constexpr uint8_t kGreeting[] = {0,    0, 6, 4, 0, 0, 0, 0, 0, 0, 4,    0x7f, 0xff, 0xff,
                                     0xff, 0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0,    0};
    EXPECT_EQ(send(connection_, kGreeting, sizeof(kGreeting), MSG_NOSIGNAL),
              static_cast<ssize_t>(sizeof(kGreeting)));
  }

  int listener_ = -1;
  int connection_ = -1;
  int port_ = 0;
  std::thread thread_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_TESTS_CLIENT_STALLED_SERVER_H_
