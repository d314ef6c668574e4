// Reads what requests a load is of from files (client/load/README.md has their forms).
//
// Thread-safe: pure functions of a file's text.
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_MIX_FILE_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_MIX_FILE_H_

#include <vector>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"
#include "client/load/requests/request_mix.h"

namespace flashbias::client {

// A mix as JSON. What an entry leaves out is as in `defaults`. INVALID_ARGUMENT: where and what is
// wrong, and what is accepted; fields that are not known or come twice are refused. Whether values
// are in their ranges is RequestMix's to say.
absl::StatusOr<std::vector<MixEntryOptions>> ParseMix(absl::string_view json,
                                                      const WorkloadOptions& defaults);

// A recorded trace as CSV with a line of names. INVALID_ARGUMENT: the line and what is wrong.
absl::StatusOr<std::vector<TraceRow>> ParseTrace(absl::string_view csv);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_MIX_FILE_H_
