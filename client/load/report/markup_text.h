// Text of others, such as a server's version or an error's message, made fit to be shown.
//
// Pure functions; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_MARKUP_TEXT_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_MARKUP_TEXT_H_

#include <string>

#include "absl/strings/string_view.h"

namespace flashbias::client {

// Valid UTF-8 on one line: line ends and tabs become spaces; other control characters, what is not
// UTF-8 and what XML forbids become U+FFFD.
std::string PrintableText(absl::string_view text);

// The same as text or an attribute's value of HTML and XML.
std::string EscapeMarkup(absl::string_view text);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_MARKUP_TEXT_H_
