#include "server/process_metrics.h"

#include <gtest/gtest.h>
#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/support/process_usage.h"

namespace flashbias::server {
namespace {

std::map<std::string, double> Read() {
  std::map<std::string, double> values;
  for (const prometheus::MetricFamily& family : NewProcessMetrics()->Collect()) {
    const bool counter = family.type == prometheus::MetricType::Counter;
    EXPECT_EQ(counter, family.name == "process_cpu_seconds_total");
    EXPECT_FALSE(family.help.empty());
    EXPECT_EQ(family.metric.size(), 1) << family.name;
    const prometheus::ClientMetric& metric = family.metric.front();
    values[family.name] = counter ? metric.counter.value : metric.gauge.value;
  }
  return values;
}

TEST(ProcessMetricsTest, AllAreThereWhateverTheProcessIsCalled) {
  char before[16] = {};
  ASSERT_EQ(prctl(PR_GET_NAME, before), 0);
  for (const char* name : {"plain", "a) R 1 (b", ") ", ""}) {
    ASSERT_EQ(prctl(PR_SET_NAME, name), 0);
    std::map<std::string, double> values = Read();
    EXPECT_EQ(values.size(), 6) << name;
    EXPECT_GT(values["process_resident_memory_bytes"], 1 << 20) << name;
    EXPECT_GT(values["process_virtual_memory_bytes"], values["process_resident_memory_bytes"])
        << name;
  }
  prctl(PR_SET_NAME, before);
}

TEST(ProcessMetricsTest, CpuSecondsGrowWithWork) {
  const double before = Read()["process_cpu_seconds_total"];
  const absl::Time start = absl::Now();
  const absl::Time give_up = start + absl::Minutes(5);
  while (Read()["process_cpu_seconds_total"] < before + 0.1 && absl::Now() < give_up) {
  }
  const double burnt = Read()["process_cpu_seconds_total"] - before;
  EXPECT_GE(burnt, 0.1);
  // One thread works; the system counts in ticks of a hundredth.
  EXPECT_LE(burnt, absl::ToDoubleSeconds(absl::Now() - start) + 0.05);
}

TEST(ProcessMetricsTest, MemoryGrowsWithWhatIsMappedAndTouched) {
  constexpr size_t kBytes = size_t{64} << 20;
  const std::map<std::string, double> before = Read();
  void* const data =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(data, MAP_FAILED);
  const std::map<std::string, double> mapped = Read();
  std::memset(data, 1, kBytes);
  const std::map<std::string, double> touched = Read();
  munmap(data, kBytes);
  const auto grown = [](const char* name, const auto& from, const auto& to) {
    return to.at(name) - from.at(name);
  };
  // The kernel counts pages in portions; a sanitizer takes several bytes for each.
  for (const double bytes : {grown("process_virtual_memory_bytes", before, mapped),
                             grown("process_resident_memory_bytes", mapped, touched)}) {
    EXPECT_GT(bytes, 0.9 * kBytes);
    EXPECT_LT(bytes, 8.0 * kBytes);
  }
}

TEST(ProcessMetricsTest, DescriptorsAreCountedAndTheirLimitIsThere) {
  const double before = Read()["process_open_fds"];
  EXPECT_EQ(before, support::OpenDescriptors() - 1) << "less the one that it lists them with";
  {
    std::vector<std::ifstream> files(10);
    for (std::ifstream& file : files) file.open("/proc/self/stat");
    EXPECT_EQ(Read()["process_open_fds"], before + 10);
  }
  EXPECT_EQ(Read()["process_open_fds"], before);
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit lower = {.rlim_cur = 99, .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &lower), 0);
  EXPECT_EQ(Read()["process_max_fds"], 99);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

TEST(ProcessMetricsTest, TheProcessStartedALittleWhileAgo) {
  const double start = Read()["process_start_time_seconds"];
  const double now = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
  EXPECT_LE(start, now + 2);  // the boot time is in whole seconds
  EXPECT_GT(start, now - 3600);
  EXPECT_EQ(Read()["process_start_time_seconds"], start);
}

}  // namespace
}  // namespace flashbias::server
