// Figures that several forms of the report show and that are computed from what a run measured.
//
// Pure functions; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_REPORT_RUN_FIGURES_H_
#define FLASHBIAS_CLIENT_LOAD_REPORT_RUN_FIGURES_H_

#include <cstddef>
#include <optional>
#include <string>

#include "absl/types/span.h"
#include "client/load/report/load_report.h"

namespace flashbias::client {

struct NamedPercentile {
  const char* name;  // "p99.9"
  double percent;
};
absl::Span<const NamedPercentile> ReportedPercentiles();

// Seconds a request, means over those that succeeded; zero when none did.
struct StageMeans {
  double receive = 0, queue = 0, compute = 0, send = 0;
  double upload = 0, kernel = 0, download = 0;  // parts of compute
  double rest_of_compute = 0;
  double outside = 0;  // the part of the service time in which no server had the request
};
StageMeans StageMeansOf(const LoadResult& result);

double MeanBatch(const StageTotals& stages);     // requests; 0 without calls
double SkippedShare(const StageTotals& stages);  // of the tiles; 0 without tiles

// Per second of elapsed time, of what succeeded; 0 when none elapsed.
double TokensPerSecond(const LoadResult& result);
double BytesPerSecond(const LoadResult& result);

// Nanoseconds of CPU time for each byte of tensors; absent where it was not measured.
std::optional<double> ClientCpuPerByte(const RunReport& run);
std::optional<double> ServerCpuPerByte(const RunReport& run);

// Of a sweep, the run at the best rate; without one, the first; null without steps.
const RunReport* BestStep(const SweepReport& sweep);

// Whether the rate that bounds a sweep from above was missed because requests were sent late: then
// the best rate is what could be offered, and the server may take more.
bool BoundedByGenerator(const SweepReport& sweep);

// What came of step `n`: "met" or "not met", with the first reason of one that is invalid.
std::string StepOutcome(const SweepReport& sweep, size_t n);

// The intervals of a run without a last one too short for figures of its own.
absl::Span<const Interval> PlottedIntervals(const LoadResult& result);

std::string Name(LoopKind loop);                       // "open", "closed"
std::string DescribeServer(const ServerInfo& server);  // "cuda 0.1.0 (device; device)"
// "2s", "100 requests" or "2s or 100 requests"; `time` is how its time is written. Empty: none.
std::string DescribeWarmup(const LoadReport& report, const std::string& time);
std::string TargetName(const LoadReport& report, size_t target);
std::string EntryName(const LoadReport& report, size_t entry);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REPORT_RUN_FIGURES_H_
