#include "client/load/report/html_table.h"

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/load/report/markup_text.h"

namespace flashbias::client {
namespace {

absl::string_view ClassOf(HtmlTable::Column column) {
  return column == HtmlTable::Column::kText ? " class=\"text\"" : "";
}

}  // namespace

void HtmlTable::AddRow(const std::vector<std::string>& cells) {
  absl::StrAppend(&rows_, "<tr>");
  for (size_t n = 0; n < cells.size(); ++n) {
    const absl::string_view kind = ClassOf(headings_[n].column);
    if (n == 0) {
      absl::StrAppend(&rows_, "<th scope=\"row\"", kind, ">", EscapeMarkup(cells[n]), "</th>");
    } else {
      absl::StrAppend(&rows_, "<td", kind, ">", EscapeMarkup(cells[n]), "</td>");
    }
  }
  absl::StrAppend(&rows_, "</tr>\n");
}

std::string HtmlTable::ToHtml(absl::string_view caption) const {
  std::string out = absl::StrCat("<div class=\"card table\"><div class=\"scroll\"><table><caption>",
                                 EscapeMarkup(caption), "</caption><thead><tr>");
  for (const Heading& heading : headings_) {
    absl::StrAppend(&out, "<th scope=\"col\"", ClassOf(heading.column), ">",
                    EscapeMarkup(heading.name), "</th>");
  }
  absl::StrAppend(&out, "</tr></thead><tbody>\n", rows_, "</tbody></table></div></div>\n");
  return out;
}

}  // namespace flashbias::client
