// Draws shares of a whole as one stacked bar, as SVG to be put into an HTML page.
//
// Colours come from the page's style sheet: classes g1 to g8. Pure function; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_STAGE_BAR_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_STAGE_BAR_H_

#include <string>

#include "absl/types/span.h"

namespace flashbias::client {

struct BarPart {
  std::string name = {};
  int colour = 1;    // 1 to 8
  double value = 0;  // at least 0; not finite counts as 0
  std::string tooltip = {};
};

// One <svg> element that is as wide as its place. `id` starts the ids in it and must be unique on
// the page.
std::string RenderStackedBar(const std::string& title, const std::string& description,
                             absl::Span<const BarPart> parts, const std::string& id);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_STAGE_BAR_H_
