#include "server/process_metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace flashbias::server {
namespace {

using Families = std::vector<prometheus::MetricFamily>;

void Add(Families* families, prometheus::MetricType type, const char* name, const char* help,
         double value) {
  prometheus::ClientMetric metric;
  (type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  family.metric.push_back(std::move(metric));
  families->push_back(std::move(family));
}

void AddGauge(Families* families, const char* name, const char* help, double value) {
  Add(families, prometheus::MetricType::Gauge, name, help, value);
}

// When the system was booted, in seconds since 1970.
std::optional<double> BootTime() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    double seconds = 0;
    if (words[0] == "btime" && words.size() == 2 && absl::SimpleAtod(words[1], &seconds)) {
      return seconds;
    }
  }
  return std::nullopt;
}

// From /proc/self/stat, whose fields proc(5) numbers.
void AddStat(Families* families) {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  // The second field is the program's name in parentheses, which may hold anything.
  const size_t name_end = line.rfind(") ");
  if (name_end == std::string::npos) return;
  constexpr size_t kFirst = 3;
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(line).substr(name_end + 2), ' ');
  const auto field = [&fields](size_t number) {
    int64_t value = 0;
    const bool read =
        number - kFirst < fields.size() && absl::SimpleAtoi(fields[number - kFirst], &value);
    return read ? std::optional(static_cast<double>(value)) : std::nullopt;
  };
  const std::optional<double> user = field(14);
  const std::optional<double> system = field(15);
  const std::optional<double> start = field(22);
  const std::optional<double> virtual_bytes = field(23);
  const std::optional<double> resident_pages = field(24);
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  if (user.has_value() && system.has_value()) {
    Add(families, prometheus::MetricType::Counter, "process_cpu_seconds_total",
        "CPU time, user and system.", (*user + *system) / ticks);
  }
  if (virtual_bytes.has_value()) {
    AddGauge(families, "process_virtual_memory_bytes", "Virtual memory.", *virtual_bytes);
  }
  if (resident_pages.has_value()) {
    AddGauge(families, "process_resident_memory_bytes", "Resident memory.",
             *resident_pages * static_cast<double>(sysconf(_SC_PAGESIZE)));
  }
  const std::optional<double> boot = BootTime();
  if (start.has_value() && boot.has_value()) {
    AddGauge(families, "process_start_time_seconds", "When the process started, since 1970.",
             *boot + *start / ticks);
  }
}

void AddDescriptors(Families* families) {
  std::error_code error;
  std::filesystem::directory_iterator entry("/proc/self/fd", error);
  // Less the one that lists them.
  int64_t open = -1;
  for (; !error && entry != end(entry); entry.increment(error)) ++open;
  if (!error) {
    AddGauge(families, "process_open_fds", "Open file descriptors.", static_cast<double>(open));
  }
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    AddGauge(families, "process_max_fds", "How many may be open.",
             limit.rlim_cur == RLIM_INFINITY ? std::numeric_limits<double>::infinity()
                                             : static_cast<double>(limit.rlim_cur));
  }
}

class ProcessMetrics final : public prometheus::Collectable {
 public:
  Families Collect() const override {
    Families families;
    AddStat(&families);
    AddDescriptors(&families);
    return families;
  }
};

}  // namespace

std::shared_ptr<prometheus::Collectable> NewProcessMetrics() {
  return std::make_shared<ProcessMetrics>();
}

}  // namespace flashbias::server
