// A histogram in the percentile format of HdrHistogram (.hgrm), which its plotters read: value in
// milliseconds, percentile, count up to it, 1 / (1 - percentile), and a summary in # lines.
//
// Pure function; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_HDR_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_HDR_H_

#include <string>

#include "client/load/engine/latency_histogram.h"

namespace flashbias::client {

std::string FormatHdrPercentiles(const LatencyHistogram& histogram);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_HDR_H_
