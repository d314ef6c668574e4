// A load report as one HTML page with plots, which needs no network, no script and no other file,
// and follows the reader's choice of light or dark.
//
// Pure function; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_HTML_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_HTML_H_

#include <string>

#include "client/load/report/load_report.h"

namespace flashbias::client {

std::string FormatHtml(const LoadReport& report);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_HTML_H_
