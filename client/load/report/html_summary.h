// The top of the HTML report: what was run, what to think of it, the key figures.
//
// Pure functions; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_HTML_SUMMARY_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_HTML_SUMMARY_H_

#include <string>

#include "client/load/report/load_report.h"

namespace flashbias::client {

// "Open loop at 400 requests/s"; plain text.
std::string ReportTitle(const LoadReport& report);

// These are HTML.
std::string SummaryHtml(const LoadReport& report);
std::string KeyFiguresHtml(const RunReport& run);
// Whether it may be believed, and why not.
std::string VerdictHtml(const RunReport& run);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_HTML_SUMMARY_H_
