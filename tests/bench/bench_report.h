// What attention_bench prints: a table for people, JSON for programs.
#ifndef FLASHBIAS_TESTS_BENCH_BENCH_REPORT_H_
#define FLASHBIAS_TESTS_BENCH_BENCH_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/bench/attention_floor.h"
#include "tests/bench/bench_case.h"
#include "tests/bench/launch_timer.h"

namespace flashbias::bench {

struct DeviceDescription {
  std::string name;
  int compute_capability = 0;  // 10 * major + minor
  double max_clock_ghz = 0;    // what the driver says
  int driver_version = 0;      // as CUDA numbers them: 1000 * major + 10 * minor
  int runtime_version = 0;
};

struct BenchRow {
  BenchCase shape;
  std::string family;  // "hopper", "portable"
  LaunchTimes times;
  uint64_t tiles_computed = 0;  // of one launch
  uint64_t tiles_skipped = 0;
  FloorMs floor;
  std::optional<double> dense_tflops;    // only where skipping is off
  std::optional<double> relative_error;  // only with --check
};

struct BenchReport {
  DeviceDescription device;
  DeviceRates rates;
  std::vector<std::pair<std::string, std::string>> flags;
  std::vector<BenchRow> rows;
};

std::string FormatHeader(const BenchReport& report);  // ends with the table's column names
std::string FormatRow(const BenchRow& row);
std::string FormatJson(const BenchReport& report);

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_BENCH_REPORT_H_
