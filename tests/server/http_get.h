// A bare HTTP GET over loopback, for scraping.
#ifndef FLASHBIAS_TESTS_SERVER_HTTP_GET_H_
#define FLASHBIAS_TESTS_SERVER_HTTP_GET_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>

namespace flashbias::server {

// The answer, headers included; empty where there is none.
inline std::string HttpGet(int port, const std::string& path) {
  const int socket_fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(socket_fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\nHost: localhost\r\n\r\n";
    if (write(socket_fd, request.data(), request.size()) > 0) {
      char buffer[4096];
      for (ssize_t got; (got = read(socket_fd, buffer, sizeof(buffer))) > 0;) {
        answer.append(buffer, static_cast<size_t>(got));
      }
    }
  }
  close(socket_fd);
  return answer;
}

}  // namespace flashbias::server

#endif  // FLASHBIAS_TESTS_SERVER_HTTP_GET_H_
