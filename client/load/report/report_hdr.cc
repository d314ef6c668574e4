#include "client/load/report/report_hdr.h"

#include <cmath>
#include <cstdint>

#include "absl/strings/str_format.h"

namespace flashbias::client {
namespace {

constexpr double kTicksPerHalfDistance = 5;
// HdrHistogram's layout for the histogram's range and precision.
constexpr int kBuckets = 17;
constexpr int kSubBuckets = 2048;

double Milliseconds(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

// The next percentile to be shown: as many steps again for each half of the distance to 100.
double NextLevel(double percent) {
  const double halvings = std::floor(std::log(100 / (100 - percent)) / std::log(2.0));
  return percent + 100 / (kTicksPerHalfDistance * std::exp2(halvings + 1));
}

}  // namespace

std::string FormatHdrPercentiles(const LatencyHistogram& histogram) {
  std::string out = absl::StrFormat("%12s %14s %10s %14s\n\n", "Value", "Percentile", "TotalCount",
                                    "1/(1-Percentile)");
  const int64_t total = histogram.count();
  double level = 0;
  int64_t seen = 0;
  for (const LatencyHistogram::Bucket& bucket : histogram.Buckets()) {
    seen += bucket.count;
    // The largest value is known exactly.
    const absl::Duration value = seen == total ? histogram.max() : bucket.most;
    while (100 * static_cast<double>(seen) / static_cast<double>(total) >= level) {
      absl::StrAppendFormat(&out, "%12.3f %2.12f %10d %14.2f\n", Milliseconds(value), level / 100,
                            seen, 1 / (1 - level / 100));
      level = NextLevel(level);
      if (seen == total || level >= 100) break;
    }
  }
  if (total > 0) {
    absl::StrAppendFormat(&out, "%12.3f %2.12f %10d\n", Milliseconds(histogram.max()), 1.0, total);
  }
  absl::StrAppendFormat(&out,
                        "#[Mean    = %12.3f, StdDeviation   = %12.3f]\n"
                        "#[Max     = %12.3f, Total count    = %12d]\n"
                        "#[Buckets = %12d, SubBuckets     = %12d]\n",
                        Milliseconds(histogram.Mean()), Milliseconds(histogram.StandardDeviation()),
                        Milliseconds(histogram.max()), total, kBuckets, kSubBuckets);
  return out;
}

}  // namespace flashbias::client
