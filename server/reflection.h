// Turns gRPC server reflection on or off for one server.
//
// Linking the reflection library turns it on for every server of the process; this builder option
// makes it each server's own choice.
#ifndef FLASHBIAS_SERVER_REFLECTION_H_
#define FLASHBIAS_SERVER_REFLECTION_H_

#include <grpcpp/impl/server_builder_option.h>

#include <memory>

namespace flashbias::server {

std::unique_ptr<grpc::ServerBuilderOption> ReflectionOption(bool enabled);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_REFLECTION_H_
