// A table of an HTML page, every text escaped.
//
// Thread-safety: none.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_HTML_TABLE_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_HTML_TABLE_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace flashbias::client {

class HtmlTable {
 public:
  // Columns of text are aligned to the left, figures to the right.
  enum class Column { kText, kFigure };
  struct Heading {
    std::string name;
    Column column = Column::kFigure;
  };

  explicit HtmlTable(std::vector<Heading> headings) : headings_(std::move(headings)) {}

  // REQUIRES: as many cells as headings.
  void AddRow(const std::vector<std::string>& cells);
  bool empty() const { return rows_.empty(); }
  // One element, which scrolls sideways where it is too wide for the page.
  std::string ToHtml(absl::string_view caption) const;

 private:
  const std::vector<Heading> headings_;
  std::string rows_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_HTML_TABLE_H_
