// A TCP server on the loopback that gives one connection a scripted answer, whatever is asked.
#ifndef FLASHBIAS_TESTS_CLIENT_LOAD_SCRIPTED_HTTP_SERVER_H_
#define FLASHBIAS_TESTS_CLIENT_LOAD_SCRIPTED_HTTP_SERVER_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace flashbias::client {

class ScriptedHttpServer {
 public:
  // An empty answer: none, and the connection stays open until the destructor.
  explicit ScriptedHttpServer(std::string answer) : answer_(std::move(answer)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(listen(listener_, 8), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Answer(); });
  }
  ~ScriptedHttpServer() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
    if (connection_ >= 0) close(connection_);
  }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  // To be read after the answer was given.
  const std::string& request() const { return request_; }

 private:
  void Answer() {
    connection_ = accept(listener_, nullptr, nullptr);
    if (connection_ < 0) return;
    char buffer[4096];
    while (request_.find("\r\n\r\n") == std::string::npos) {
      const ssize_t size = recv(connection_, buffer, sizeof(buffer), 0);
      if (size <= 0) return;
      request_.append(buffer, static_cast<size_t>(size));
    }
    if (answer_.empty()) return;
    EXPECT_EQ(send(connection_, answer_.data(), answer_.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(answer_.size()));
    shutdown(connection_, SHUT_WR);
  }

  const std::string answer_;
  int listener_ = -1;
  int connection_ = -1;
  int port_ = 0;
  std::string request_;
  std::thread thread_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_TESTS_CLIENT_LOAD_SCRIPTED_HTTP_SERVER_H_
