// The process as the system sees it, under the names that Prometheus gives to every process.
//
// Thread-safety: Collect from any thread. It reads /proc/self anew each time and leaves out what
// cannot be read.
#ifndef FLASHBIAS_SERVER_PROCESS_METRICS_H_
#define FLASHBIAS_SERVER_PROCESS_METRICS_H_

#include <memory>

namespace prometheus {
class Collectable;
}

namespace flashbias::server {

// process_cpu_seconds_total, process_resident_memory_bytes, process_virtual_memory_bytes,
// process_open_fds, process_max_fds, process_start_time_seconds.
std::shared_ptr<prometheus::Collectable> NewProcessMetrics();

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_PROCESS_METRICS_H_
