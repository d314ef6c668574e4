// Figures for people: a unit by the magnitude, three significant digits, thousands apart.
//
// Pure functions; thread-safe. UTF-8 (a microsecond is "µs"). What is not finite is "-".
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_HUMAN_UNITS_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_HUMAN_UNITS_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace flashbias::client {

struct Unit {
  double size = 1;  // in base units
  std::string name = {};
};
// In which a value of that magnitude reads best.
Unit LatencyUnit(double seconds);  // ns, µs, ms, s
Unit SpanUnit(double seconds);     // s, min, h
Unit CountUnit(double count);      // "", k, M, G from 10,000 on
Unit ByteUnit(double bytes);       // B, kB, MB, GB, TB

std::string FormatCount(int64_t count);              // "1,234,567"
std::string FormatNumber(double value);              // "0.123", "12.3", "1,234"
std::string FormatLatency(double seconds);           // "12.3 ms"
std::string FormatLatency(absl::Duration duration);  // the same
std::string FormatSpan(absl::Duration duration);     // "12.3 s", "4.5 min"
std::string FormatBytes(double bytes);               // "1.23 MB"
std::string FormatByteRate(double bytes);            // "1.23 GB/s"

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_HUMAN_UNITS_H_
