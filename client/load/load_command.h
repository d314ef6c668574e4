// The command line of flashbias-load: its flags, as one validated value.
//
// Not thread-safe: reads the process's flags, once they are set.
#ifndef FLASHBIAS_CLIENT_LOAD_LOAD_COMMAND_H_
#define FLASHBIAS_CLIENT_LOAD_LOAD_COMMAND_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/load/engine/arrivals.h"
#include "client/load/engine/rate_search.h"
#include "client/load/load_driver.h"
#include "client/load/requests/mix_caller.h"
#include "client/load/requests/request_mix.h"

namespace flashbias::client {

struct LoadOutputs {      // files; empty: not asked for
  std::string json = {};  // "-": stdout, the table to stderr
  std::string csv = {};
  std::string hdr = {};
  std::string html = {};
};

struct LoadCommand {
  MixCallerOptions caller = {};
  MixOptions mix = {};
  LoadShape shape = {};
  ValidityLimits limits = {};
  bool sweep = false;
  SweepOptions sweep_options = {};
  std::vector<std::string> metrics = {};  // addresses of /metrics; empty, or one for each target
  int verify_rows = 16;
  bool progress = false;
  bool allow_errors = false;
  LoadOutputs outputs = {};
};

// Reads the files of --mix and --trace. INVALID_ARGUMENT: names the flag, what came and what is
// accepted.
absl::StatusOr<LoadCommand> CommandFromFlags();

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_LOAD_COMMAND_H_
