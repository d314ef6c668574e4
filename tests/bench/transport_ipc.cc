// The service on a GPU with q, k, v and o in device memory of this process.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "tests/bench/gpu_server_process.h"
#include "tests/bench/service_caller.h"
#include "tests/bench/transport_subject.h"

namespace flashbias::bench {
namespace {

absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

class IpcSubject final : public TransportSubject {
 public:
  explicit IpcSubject(const TransportSetup& setup) : setup_(setup), caller_(setup) {}
  ~IpcSubject() override {
    region_ = nullptr;  // before its memory is freed
    cudaFree(tensors_);
  }

  absl::Status Start() {
    auto server = GpuServerProcess::Start(setup_.unix_path);
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    absl::Status status = caller_.Connect(absl::StrCat("unix:", setup_.unix_path));
    const size_t total = caller_.total_bytes();
    if (status.ok()) status = ToStatus(cudaMalloc(&tensors_, total), "cudaMalloc");
    if (!status.ok()) return status;
    cudaIpcMemHandle_t handle;
    status = ToStatus(cudaIpcGetMemHandle(&handle, tensors_), "cudaIpcGetMemHandle");
    if (!status.ok()) return status;
    std::vector<char> host(total);
    const size_t bytes = caller_.tensor_bytes();
    for (uint32_t n = 0; n < caller_.num_inputs(); ++n) {
      FillWithValues(n, absl::MakeSpan(host).subspan(n * bytes, bytes));
    }
    status =
        ToStatus(cudaMemcpy(tensors_, host.data(), total, cudaMemcpyHostToDevice), "cudaMemcpy");
    if (status.ok()) status = ToStatus(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    if (!status.ok()) return status;
    auto region = caller_.client().RegisterDeviceMemory(
        {.data = tensors_,
         .bytes = total,
         .ipc_handle =
             absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(&handle), sizeof(handle))});
    if (!region.ok()) return region.status();
    region_ = *std::move(region);
    return caller_.SetTensors(static_cast<char*>(tensors_));
  }

  absl::Status Call(int lane, std::optional<ServerTime>* time) override {
    return caller_.Call(lane, time);
  }

 private:
  const TransportSetup setup_;
  std::unique_ptr<GpuServerProcess> server_;
  ServiceCaller caller_;
  void* tensors_ = nullptr;
  std::unique_ptr<client::DeviceRegion> region_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeIpcGpuSubject(const TransportSetup& setup) {
  auto subject = std::make_unique<IpcSubject>(setup);
  if (absl::Status status = subject->Start(); !status.ok()) return status;
  return subject;
}

}  // namespace flashbias::bench
