#include "client/load/report/human_units.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace flashbias::client {
namespace {

// The last whose size a value reaches; the first for smaller ones. Ascending.
Unit Pick(double value, std::initializer_list<Unit> units) {
  const Unit* picked = units.begin();
  for (const Unit& unit : units) {
    // 999.9 us is written as 1.00 ms, not as 1,000 us.
    if (std::abs(value) >= unit.size * 0.9995) picked = &unit;
  }
  return *picked;
}

std::string GroupThousands(absl::string_view digits) {
  const size_t first = absl::StartsWith(digits, "-") ? 1 : 0;
  const size_t end = std::min(digits.find('.'), digits.size());
  std::string out;
  for (size_t n = 0; n < digits.size(); ++n) {
    if (n > first && n < end && (end - n) % 3 == 0) out += ',';
    out += digits[n];
  }
  return out;
}

std::string In(const Unit& unit, double value) {
  const std::string number = FormatNumber(value / unit.size);
  return std::isfinite(value) ? absl::StrCat(number, " ", unit.name) : number;
}

}  // namespace

Unit LatencyUnit(double seconds) {
  return Pick(seconds, {{1e-9, "ns"}, {1e-6, "µs"}, {1e-3, "ms"}, {1, "s"}});
}

Unit SpanUnit(double seconds) {
  return seconds <= 600 ? Unit{1, "s"} : seconds <= 4 * 3600 ? Unit{60, "min"} : Unit{3600, "h"};
}

Unit CountUnit(double count) {
  return std::abs(count) < 1e4 ? Unit{1, ""} : Pick(count, {{1e3, "k"}, {1e6, "M"}, {1e9, "G"}});
}

Unit ByteUnit(double bytes) {
  return Pick(bytes, {{1, "B"}, {1e3, "kB"}, {1e6, "MB"}, {1e9, "GB"}, {1e12, "TB"}});
}

std::string FormatCount(int64_t count) { return GroupThousands(absl::StrCat(count)); }

std::string FormatNumber(double value) {
  if (!std::isfinite(value)) return "-";
  if (value == 0) return "0";
  const double magnitude = std::floor(std::log10(std::abs(value) * 1.0005));
  if (magnitude < -4) return absl::StrFormat("%.2e", value);
  if (magnitude > 15) return absl::StrFormat("%.3g", value);
  return GroupThousands(
      absl::StrFormat("%.*f", std::max(0, 2 - static_cast<int>(magnitude)), value));
}

std::string FormatLatency(double seconds) {
  return seconds == 0 ? "0 ms" : In(LatencyUnit(seconds), seconds);
}

std::string FormatLatency(absl::Duration duration) {
  return FormatLatency(absl::ToDoubleSeconds(duration));
}

std::string FormatSpan(absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  return In(SpanUnit(seconds), seconds);
}

std::string FormatBytes(double bytes) { return In(ByteUnit(bytes), bytes); }

std::string FormatByteRate(double bytes) {
  return std::isfinite(bytes) ? absl::StrCat(FormatBytes(bytes), "/s") : "-";
}

}  // namespace flashbias::client
