// The command line of the programs in client/: abseil flags, with errors as values.
//
// Unlike absl::ParseCommandLine it never exits, takes flags that may stand without a value, and
// refuses arguments that are no flags. Not thread-safe: call it first thing in main.
#ifndef FLASHBIAS_CLIENT_FLAGS_COMMAND_LINE_H_
#define FLASHBIAS_CLIENT_FLAGS_COMMAND_LINE_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace flashbias::client {

struct CommandLine {
  bool help = false;  // --help was among the arguments; the flags before it were set
};

// Sets the flags that `arguments` (without the program's name) names: --name=value, --name value,
// --name and --noname for bools. `standalone` holds the values that flags other than bools take
// when they stand alone; those never take the next argument. INVALID_ARGUMENT: one line for the
// user.
absl::StatusOr<CommandLine> ParseFlags(absl::Span<const char* const> arguments,
                                       const std::map<std::string, std::string>& standalone = {});

// `usage`, then name, help and default of every flag that is defined in a file whose path contains
// `file_part`.
std::string HelpText(absl::string_view usage, absl::string_view file_part);

// "program: CODE: message", in one line.
std::string ErrorLine(absl::string_view program, const absl::Status& status);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_FLAGS_COMMAND_LINE_H_
