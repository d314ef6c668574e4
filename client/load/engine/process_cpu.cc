#include "client/load/engine/process_cpu.h"

#include <sys/resource.h>

namespace flashbias::client {

absl::Duration ProcessCpuTime() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime);
}

}  // namespace flashbias::client
