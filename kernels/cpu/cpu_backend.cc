#include "kernels/cpu/cpu_backend.h"

namespace flashbias {

absl::StatusOr<std::unique_ptr<AttentionBackend>> CreateCpuBackend(const CpuBackendOptions&) {
  return absl::UnimplementedError("being written");
}

}  // namespace flashbias
