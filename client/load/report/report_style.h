// The style sheet of the HTML report.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_STYLE_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_STYLE_H_

#include "absl/strings/string_view.h"

namespace flashbias::client {

// CSS. Has none of the characters that XML wants escaped.
extern const absl::string_view kReportStyle;

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_REPORT_STYLE_H_
