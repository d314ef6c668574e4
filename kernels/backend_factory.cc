#include "kernels/backend_factory.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/cpu/cpu_backend.h"

#ifdef FLASHBIAS_WITH_CUDA
#include "kernels/cuda/cuda_devices.h"
#endif

namespace flashbias {
namespace {

// Below this a handful of requests would fill it.
constexpr int64_t kLeastPinnedBytes = int64_t{16} << 20;

using Backends = std::vector<std::unique_ptr<AttentionBackend>>;

#ifdef FLASHBIAS_WITH_CUDA

constexpr const char* kKinds = "'auto', 'cuda' and 'cpu'";
constexpr bool kWithCuda = true;

bool CudaIsThere() { return !cuda::UsableDevices().empty(); }

absl::StatusOr<std::vector<int>> ParseDevices(const std::string& list) {
  std::vector<int> devices;
  if (list.empty()) return devices;
  for (const absl::string_view word : absl::StrSplit(list, ',')) {
    int ordinal = -1;
    if (!absl::SimpleAtoi(word, &ordinal) || ordinal < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "cuda_devices is '", list, "'; accepted: ordinals, separated by commas, or nothing"));
    }
    devices.push_back(ordinal);
  }
  return devices;
}

absl::StatusOr<Backends> CreateCuda(const BackendOptions& options) {
  absl::StatusOr<std::vector<int>> devices = ParseDevices(options.cuda_devices);
  if (!devices.ok()) return devices.status();
  absl::StatusOr<std::vector<std::unique_ptr<cuda::CudaBackend>>> made = cuda::CreateCudaBackends(
      {.devices = *std::move(devices),
       .backend = {.slots = options.cuda_slots,
                   .device_memory_bytes = static_cast<size_t>(options.device_memory_bytes)},
       .pinned_memory_bytes = static_cast<size_t>(options.pinned_memory_bytes)});
  if (!made.ok()) return made.status();
  Backends backends;
  for (auto& backend : *made) backends.push_back(std::move(backend));
  return backends;
}

#else

constexpr const char* kKinds = "'auto' and 'cpu'";
constexpr bool kWithCuda = false;

bool CudaIsThere() { return false; }

absl::StatusOr<Backends> CreateCuda(const BackendOptions& /*options*/) {
  return absl::UnimplementedError("this build has no CUDA");
}

#endif

absl::Status CheckAtLeast(const char* name, int64_t value, int64_t least) {
  if (value >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; accepted: ", least, " or more"));
}

}  // namespace

absl::Status Validate(const BackendOptions& options) {
  for (const absl::Status& status :
       {CheckAtLeast("device_memory_bytes", options.device_memory_bytes, 0),
        CheckAtLeast("pinned_memory_bytes", options.pinned_memory_bytes, kLeastPinnedBytes)}) {
    if (!status.ok()) return status;
  }
  if (options.kind != "auto" && options.kind != "cpu" && !(kWithCuda && options.kind == "cuda")) {
    return absl::InvalidArgumentError(
        absl::StrCat("backend is '", options.kind, "'; this build accepts ", kKinds));
  }
  return absl::OkStatus();
}

absl::StatusOr<Backends> CreateBackends(const BackendOptions& options) {
  if (absl::Status valid = Validate(options); !valid.ok()) return valid;
  if (options.kind == "cuda" || (options.kind == "auto" && CudaIsThere())) {
    return CreateCuda(options);
  }
  absl::StatusOr<std::unique_ptr<AttentionBackend>> cpu =
      CreateCpuBackend({.num_threads = options.cpu_threads});
  if (!cpu.ok()) return cpu.status();
  Backends backends;
  backends.push_back(*std::move(cpu));
  return backends;
}

absl::StatusOr<std::unique_ptr<AttentionBackend>> CreateBackend(const BackendOptions& options) {
  absl::StatusOr<Backends> backends = CreateBackends(options);
  if (!backends.ok()) return backends.status();
  return std::move(backends->front());
}

}  // namespace flashbias
