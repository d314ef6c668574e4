// Load reports with the figures of a simulated server, for tests of the reports.
//
// The server takes the same time for each request, one after the other, and requests arrive as a
// Poisson process (M/D/1). Pure functions of their arguments.
#ifndef FLASHBIAS_TESTS_CLIENT_LOAD_SIMULATED_REPORT_H_
#define FLASHBIAS_TESTS_CLIENT_LOAD_SIMULATED_REPORT_H_

#include <cstdint>

#include "absl/time/time.h"
#include "client/load/report/load_report.h"

namespace flashbias::client {

struct SimulatedRun {
  double rate = 100;                            // requests a second
  absl::Duration work = absl::Milliseconds(4);  // that the server takes for each
  absl::Duration duration = absl::Seconds(30);
  absl::Duration interval = absl::Seconds(1);
  absl::Duration timeout = absl::InfiniteDuration();  // a request that waits longer fails
  // Seconds of the run in which the server stands still, from the middle on.
  absl::Duration stall = {};
  uint64_t seed = 1;
};
RunReport SimulateOpenLoop(const SimulatedRun& run);

struct SimulatedCallers {
  int callers = 8;
  absl::Duration work = absl::Milliseconds(4);
  absl::Duration duration = absl::Seconds(30);
  uint64_t seed = 1;
};
RunReport SimulateClosedLoop(const SimulatedCallers& callers);

// Everything but run and sweep.
LoadReport SimulatedSetup();
LoadReport SimulatedOpenLoopReport();  // with a stall, failures, two entries, two servers
LoadReport SimulatedClosedLoopReport();
LoadReport SimulatedSweepReport();

}  // namespace flashbias::client

#endif  // FLASHBIAS_TESTS_CLIENT_LOAD_SIMULATED_REPORT_H_
