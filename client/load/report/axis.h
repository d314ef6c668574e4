// Scales of a plot's axes: where a value lies, and ticks at values that people read easily.
//
// Plain values; pure functions; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_AXIS_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_AXIS_H_

#include <string>
#include <vector>

namespace flashbias::client {

// What an axis shows. Values that are not finite are taken for 0.
struct AxisRange {
  enum class Kind {
    kSpan,     // seconds, from 0
    kLatency,  // seconds; logarithmic where the largest is many times the least
    kCount,    // from 0
    kNines,    // log10(1 / (1 - share)): 0, 90, 99, 99.9 %
  };
  Kind kind = Kind::kCount;
  double least = 0;  // kLatency: above 0; the least value that is shown
  double most = 0;
};

struct Axis {
  struct Tick {
    double at = 0;  // 0 to 1
    std::string label = {};
  };
  bool logarithmic = false;
  double begin = 0, end = 1;  // begin < end; both above 0 when logarithmic
  std::string unit = {};      // of the ticks; empty: none, or in each label
  std::vector<Tick> ticks = {};

  // 0 at the begin, 1 at the end, never outside. REQUIRES: finite.
  double At(double value) const;
};

// REQUIRES: max_ticks >= 2; up to twice as many on a logarithmic axis. Two ticks at least. Linear
// axes begin and end with a tick.
Axis MakeAxis(const AxisRange& range, int max_ticks);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_AXIS_H_
