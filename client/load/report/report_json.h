// A load report as JSON. Base units: seconds, bytes. One object, indented, ending in a newline.
//
// Pure function; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_JSON_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_JSON_H_

#include <string>

#include "client/load/report/load_report.h"

namespace flashbias::client {

std::string FormatJson(const LoadReport& report);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_JSON_H_
