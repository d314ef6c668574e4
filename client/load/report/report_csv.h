// A load report as CSV (RFC 4180) with a line of names: one row for each interval of a run, or for
// each step of a sweep. Base units: seconds, bytes.
//
// Pure function; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_CSV_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_CSV_H_

#include <string>

#include "client/load/report/load_report.h"

namespace flashbias::client {

std::string FormatCsv(const LoadReport& report);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_CSV_H_
