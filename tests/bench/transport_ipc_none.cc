// In builds without CUDA.
#include <memory>

#include "tests/bench/transport_subject.h"

namespace flashbias::bench {

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeIpcGpuSubject(
    const TransportSetup& /*setup*/) {
  return absl::NotFoundError("gpu_ipc: this build has no CUDA");
}

}  // namespace flashbias::bench
