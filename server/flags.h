// The command line of flashbias-server: one flag for every option.
//
// Thread-safety: call after absl::ParseCommandLine, from one thread.
#ifndef FLASHBIAS_SERVER_FLAGS_H_
#define FLASHBIAS_SERVER_FLAGS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kernels/backend_factory.h"
#include "server/log.h"
#include "server/options.h"

namespace flashbias::server {

// What the program is asked to do with the options.
enum class Action { kServe, kHealthCheck, kPrintConfig };

struct ProgramOptions {
  Action action = Action::kServe;

  ServerOptions server;
  BackendOptions backend;
  std::string port_file;  // empty: none
  absl::Duration drain_timeout;
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
};

// INVALID_ARGUMENT naming the flag, its value and what is accepted.
absl::StatusOr<ProgramOptions> OptionsFromFlags();

// Whether `file` defines flags of the server, as --help and its kin ask.
bool IsServerFlagFile(absl::string_view file);

// The flags of the server with the values they have, one `--name=value` a line, sorted, as
// --flagfile takes them; without those that choose the action.
std::string ConfigText();

// Every flag of the server with its meaning and default, for --help.
std::string HelpText();

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_FLAGS_H_
