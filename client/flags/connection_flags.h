// The flags by which every program here says how to reach a server: --tls and what belongs to it,
// --token_file, --load_balancing. A program that calls these functions has them.
//
// Not thread-safe: call them first thing in main, after ParseFlags.
#ifndef FLASHBIAS_CLIENT_FLAGS_CONNECTION_FLAGS_H_
#define FLASHBIAS_CLIENT_FLAGS_CONNECTION_FLAGS_H_

#include <string>

#include "absl/status/status.h"
#include "client/attention_client.h"

namespace flashbias::client {

// Sets load_balancing, tls and bearer_token of `options`, reading the files; the rest is left as it
// is, and all of it after an error. REQUIRES: options->target is set. Errors name flag and file,
// and show nothing of a key or a token. INVALID_ARGUMENT: flags that are out of range or exclude
// each other, or what a file holds; else what the system says of a file.
absl::Status ConnectionOptionsFromFlags(AttentionClient::Options* options);

// These flags for --help, to be printed after the program's own.
std::string ConnectionFlagsHelp();

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_FLAGS_CONNECTION_FLAGS_H_
