// A plain HTTP GET over a loopback socket, and the Prometheus text format, for scraping /metrics.
//
// Thread-safety: pure functions.
#ifndef FLASHBIAS_TESTS_INTEGRATION_HTTP_GET_H_
#define FLASHBIAS_TESTS_INTEGRATION_HTTP_GET_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace flashbias::integration {

struct HttpResponse {
  int status = 0;  // 200
  std::string headers;
  std::string body;
};

// From 127.0.0.1. UNAVAILABLE where nothing listens or the answer is no HTTP; gives up after 10 s.
absl::StatusOr<HttpResponse> HttpGet(int port, const std::string& path);

// Samples by name and labels as they are written, labels sorted: name{a="1",b="2"}.
using Samples = std::map<std::string, double>;
Samples ParseSamples(const std::string& body);

// GET /metrics, parsed.
absl::StatusOr<Samples> Scrape(int port);

}  // namespace flashbias::integration

#endif  // FLASHBIAS_TESTS_INTEGRATION_HTTP_GET_H_
