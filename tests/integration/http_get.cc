#include "tests/integration/http_get.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace flashbias::integration {

absl::StatusOr<HttpResponse> HttpGet(int port, const std::string& path) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  if (socket < 0) return absl::UnavailableError("no socket");
  const timeval timeout{.tv_sec = 10, .tv_usec = 0};
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request =
        absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    if (send(socket, request.data(), request.size(), MSG_NOSIGNAL) ==
        static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      ssize_t size = 0;
      while ((size = recv(socket, buffer, sizeof(buffer), 0)) > 0) {
        answer.append(buffer, static_cast<size_t>(size));
      }
    }
  }
  close(socket);
  const size_t body = answer.find("\r\n\r\n");
  if (answer.compare(0, 9, "HTTP/1.1 ") != 0 || body == std::string::npos) {
    return absl::UnavailableError(absl::StrCat("no HTTP answer from port ", port));
  }
  return HttpResponse{.status = std::atoi(answer.c_str() + 9),
                      .headers = answer.substr(0, body),
                      .body = answer.substr(body + 4)};
}

Samples ParseSamples(const std::string& body) {
  Samples samples;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(body, '\n'))) {
    if (line.empty() || line[0] == '#') continue;
    const size_t space = line.rfind(' ');
    if (space == std::string::npos) continue;
    std::string name = line.substr(0, space);
    const size_t brace = name.find('{');
    if (brace != std::string::npos) {
      const std::string inside = name.substr(brace + 1, name.size() - brace - 2);
      std::vector<std::string> labels = absl::StrSplit(inside, ',');
      std::sort(labels.begin(), labels.end());
      name = absl::StrCat(name.substr(0, brace), "{", absl::StrJoin(labels, ","), "}");
    }
    samples[name] = std::strtod(line.c_str() + space + 1, nullptr);
  }
  return samples;
}

absl::StatusOr<Samples> Scrape(int port) {
  const absl::StatusOr<HttpResponse> response = HttpGet(port, "/metrics");
  if (!response.ok()) return response.status();
  if (response->status != 200) {
    return absl::UnavailableError(absl::StrCat("/metrics answered ", response->status));
  }
  return ParseSamples(response->body);
}

}  // namespace flashbias::integration
