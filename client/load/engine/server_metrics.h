// What a server's /metrics said before and after a run.
//
// Pure but for ScrapeMetrics; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_SERVER_METRICS_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_SERVER_METRICS_H_

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace flashbias::client {

// Value by name and labels as the exposition has them: `flashbias_requests_total{code="OK",...}`.
using MetricSamples = std::map<std::string, double, std::less<>>;

// Of the text exposition format; lines that do not parse are left out.
MetricSamples ParseMetrics(std::string_view text);

// GET http://<address>/metrics, through no proxy. Blocks, at most for `timeout`. UNAVAILABLE:
// nobody answers there, not with 200, or with more than 64 MiB.
absl::StatusOr<MetricSamples> ScrapeMetrics(const std::string& address, absl::Duration timeout);

// How much counters (names that end in _total, _count, _sum or _bucket) grew, without those that
// did not. A counter that fell was reset: what it shows now counts.
MetricSamples CounterGrowth(const MetricSamples& before, const MetricSamples& after);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_SERVER_METRICS_H_
