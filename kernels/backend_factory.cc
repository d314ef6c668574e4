#include "kernels/backend_factory.h"

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_backend.h"

namespace flashbias {

absl::StatusOr<std::unique_ptr<AttentionBackend>> CreateBackend(const BackendOptions& options) {
  if (options.kind == "auto" || options.kind == "cpu") {
    return CreateCpuBackend({.num_threads = options.cpu_threads});
  }
  return absl::InvalidArgumentError(
      absl::StrCat("backend is '", options.kind, "'; this build accepts 'auto' and 'cpu'"));
}

}  // namespace flashbias
