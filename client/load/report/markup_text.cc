#include "client/load/report/markup_text.h"

#include <cstddef>
#include <cstdint>

#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"

namespace flashbias::client {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

bool IsContinuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

// Bytes of the character at the start of `text`, 0 where that is no UTF-8, and its code point.
size_t DecodeCharacter(absl::string_view text, uint32_t* code_point) {
  const auto first = static_cast<uint8_t>(text[0]);
  const size_t length = first < 0x80   ? 1
                        : first < 0xC2 ? 0  // a continuation, or longer than needed
                        : first < 0xE0 ? 2
                        : first < 0xF0 ? 3
                        : first < 0xF5 ? 4
                                       : 0;
  if (length == 0 || length > text.size()) return 0;
  uint32_t value = length == 1 ? first : first & (0x7Fu >> length);
  for (size_t n = 1; n < length; ++n) {
    if (!IsContinuation(text[n])) return 0;
    value = value << 6 | (static_cast<uint8_t>(text[n]) & 0x3F);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < kLeast[length] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return 0;
  *code_point = value;
  return length;
}

bool IsShown(uint32_t code_point) {
  const bool control = code_point < 0x20 || (code_point >= 0x7F && code_point < 0xA0);
  return !control && (code_point & 0xFFFE) != 0xFFFE;
}

}  // namespace

std::string PrintableText(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    uint32_t code_point = 0;
    const size_t length = DecodeCharacter(text, &code_point);
    if (length == 0) {
      out += kReplacement;
      text.remove_prefix(1);
      continue;
    }
    if (code_point == '\n' || code_point == '\r' || code_point == '\t') {
      out += ' ';
    } else if (IsShown(code_point)) {
      out.append(text.data(), length);
    } else {
      out += kReplacement;
    }
    text.remove_prefix(length);
  }
  return out;
}

std::string EscapeMarkup(absl::string_view text) {
  return absl::StrReplaceAll(
      PrintableText(text),
      {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

}  // namespace flashbias::client
