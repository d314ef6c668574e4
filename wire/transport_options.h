// The HTTP/2 and TCP settings that both ends use, chosen by measurement
// (tests/bench/transport_bench).
#ifndef FLASHBIAS_WIRE_TRANSPORT_OPTIONS_H_
#define FLASHBIAS_WIRE_TRANSPORT_OPTIONS_H_

#include <grpc/impl/codegen/grpc_types.h>

namespace flashbias::wire {

struct ChannelArgument {
  const char* name;
  int value;
};

inline constexpr ChannelArgument kTransportArguments[] = {
    {GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20},
};

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_TRANSPORT_OPTIONS_H_
