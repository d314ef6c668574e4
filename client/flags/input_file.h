// Small text files that flags name: certificates, keys, tokens.
//
// Free function; thread-safe. Every error is one line that begins with the file's name.
#ifndef FLASHBIAS_CLIENT_FLAGS_INPUT_FILE_H_
#define FLASHBIAS_CLIENT_FLAGS_INPUT_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace flashbias::client {

// The file's bytes. NOT_FOUND, PERMISSION_DENIED and the like, as the system says;
// INVALID_ARGUMENT: it is empty, or larger than 16 MiB.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_FLAGS_INPUT_FILE_H_
