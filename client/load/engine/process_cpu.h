// What this process has computed.
//
// Thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_PROCESS_CPU_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_PROCESS_CPU_H_

#include "absl/time/time.h"

namespace flashbias::client {

// CPU time of all its threads since it began, in user and in system mode.
absl::Duration ProcessCpuTime();

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_PROCESS_CPU_H_
