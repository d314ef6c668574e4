// The figures of the HTML report: each a <figure> with heading, legend and plot, in a size for wide
// screens and one for narrow ones, of which the style sheet shows one.
//
// Pure functions; thread-safe. `id` starts the ids in a figure and must be unique on the page. A
// figure that has nothing to show says so.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_PLOTS_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_PLOTS_H_

#include <string>

#include "client/load/report/load_report.h"

namespace flashbias::client {

std::string LatencyByPercentile(const RunReport& run, const std::string& id);
std::string LatencyOverTime(const RunReport& run, const std::string& id);
std::string ThroughputOverTime(const RunReport& run, const std::string& id);
// Where a request's time went, by the servers' account.
std::string TimeByStage(const RunReport& run, const std::string& id);

std::string LatencyByRate(const SweepReport& sweep, const std::string& id);
std::string ThroughputByRate(const SweepReport& sweep, const std::string& id);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_PLOTS_H_
