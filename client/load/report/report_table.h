// A load report as text for a terminal.
//
// Pure functions; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_TABLE_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_TABLE_H_

#include <string>

#include "client/load/report/load_report.h"

namespace flashbias::client {

std::string FormatTable(const LoadReport& report);

// The line that is shown while a load runs, without an end of line.
std::string FormatProgress(const LoadProgress& progress);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_TABLE_H_
