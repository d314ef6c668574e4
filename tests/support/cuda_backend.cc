#include "tests/support/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention_launch.h"
#include "tests/support/poison.h"

namespace flashbias::support {
namespace {

absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

// Returns from the function where `expression` is not OK.
#define FLASHBIAS_RETURN_IF_ERROR(expression)    \
  do {                                           \
    absl::Status error_status = (expression);    \
    if (!error_status.ok()) return error_status; \
  } while (false)
#define FLASHBIAS_CUDA(call) FLASHBIAS_RETURN_IF_ERROR(ToStatus((call), #call))

struct DeviceFree {
  void operator()(char* memory) const { cudaFree(memory); }
};
struct HostFree {
  void operator()(char* memory) const { cudaFreeHost(memory); }
};
struct StreamDestroy {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using DeviceMemory = std::unique_ptr<char, DeviceFree>;
using PinnedMemory = std::unique_ptr<char, HostFree>;
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, StreamDestroy>;

absl::Status Allocate(size_t bytes, DeviceMemory* memory) {
  void* address = nullptr;
  FLASHBIAS_CUDA(cudaMalloc(&address, std::max<size_t>(bytes, 1)));
  memory->reset(static_cast<char*>(address));
  return absl::OkStatus();
}

// cudaMalloc aligns to 256 bytes, so an offset of this much keeps a host address modulo 16.
size_t Misalignment(const void* host) { return reinterpret_cast<uintptr_t>(host) % 16; }

// A copy of a host tensor that ends where its allocation ends.
class DeviceInput {
 public:
  absl::Status Upload(const void* host, size_t bytes, cudaStream_t stream) {
    if (host == nullptr) return absl::OkStatus();
    const size_t offset = Misalignment(host);
    FLASHBIAS_RETURN_IF_ERROR(Allocate(offset + bytes, &memory_));
    data_ = memory_.get() + offset;
    FLASHBIAS_CUDA(cudaMemcpyAsync(data_, host, bytes, cudaMemcpyHostToDevice, stream));
    return absl::OkStatus();
  }
  const void* data() const { return data_; }

 private:
  DeviceMemory memory_;
  char* data_ = nullptr;
};

// An output between guards on the device, and what it held after the first launch.
class DeviceOutput {
 public:
  absl::Status Create(DType dtype, void* host, size_t bytes) {
    host_ = static_cast<char*>(host);
    if (host == nullptr) return absl::OkStatus();
    begin_ = kGuardBytes + Misalignment(host);
    size_ = bytes;
    fresh_.assign(begin_ + bytes + kGuardBytes, kGuard);
    FillWithPoison(dtype, fresh_.data() + begin_, bytes);
    return Allocate(fresh_.size(), &memory_);
  }
  void* data() const { return host_ == nullptr ? nullptr : memory_.get() + begin_; }

  absl::Status Poison(cudaStream_t stream) {
    if (host_ == nullptr) return absl::OkStatus();
    return ToStatus(cudaMemcpyAsync(memory_.get(), fresh_.data(), fresh_.size(),
                                    cudaMemcpyHostToDevice, stream),
                    "cudaMemcpyAsync to an output");
  }

  absl::Status Download(cudaStream_t stream) {
    now_.resize(fresh_.size());
    if (host_ == nullptr) return absl::OkStatus();
    return ToStatus(
        cudaMemcpyAsync(now_.data(), memory_.get(), now_.size(), cudaMemcpyDeviceToHost, stream),
        "cudaMemcpyAsync from an output");
  }

  // After Download has completed: what is wrong with launch number `launch`, or nothing.
  std::string Check(int launch) {
    const char* bytes = now_.data();
    if (!IsGuard(bytes, bytes + begin_) || !IsGuard(bytes + begin_ + size_, bytes + now_.size())) {
      return "bytes beside it were written on the device";
    }
    if (launch == 0) first_ = now_;
    if (first_ == now_) return "";
    const auto differ = std::mismatch(first_.begin(), first_.end(), now_.begin()).first;
    return absl::StrCat("byte ", differ - first_.begin() - static_cast<std::ptrdiff_t>(begin_),
                        " of launch ", launch, " differs from the first launch");
  }

  void CopyToHost() const {
    if (size_ > 0) std::memcpy(host_, first_.data() + begin_, size_);
  }

 private:
  char* host_ = nullptr;
  size_t begin_ = 0;
  size_t size_ = 0;
  std::vector<char> fresh_, now_, first_;
  DeviceMemory memory_;
};

struct DeviceProblem {
  DeviceInput q, k, v, phi_q, phi_k;
  DeviceOutput o, lse;

  // The problem with its tensors on the device.
  absl::StatusOr<AttentionProblem> Upload(const AttentionProblem& host, cudaStream_t stream) {
    const size_t element = SizeOf(host.dtype);
    const size_t lse_elements = static_cast<size_t>(host.total_q) * host.num_q_heads;
    const size_t q_bytes = lse_elements * host.head_dim * element;
    const size_t kv_bytes =
        static_cast<size_t>(host.total_kv) * host.num_kv_heads * host.head_dim * element;
    FLASHBIAS_RETURN_IF_ERROR(q.Upload(host.q, q_bytes, stream));
    FLASHBIAS_RETURN_IF_ERROR(k.Upload(host.k, kv_bytes, stream));
    FLASHBIAS_RETURN_IF_ERROR(v.Upload(host.v, kv_bytes, stream));
    FLASHBIAS_RETURN_IF_ERROR(o.Create(host.dtype, host.o, q_bytes));
    FLASHBIAS_RETURN_IF_ERROR(lse.Create(DType::kFloat32, host.lse, lse_elements * sizeof(float)));
    AttentionProblem device = host;
    device.q = q.data();
    device.k = k.data();
    device.v = v.data();
    device.o = o.data();
    device.lse = static_cast<float*>(lse.data());
    if (host.bias_kind == BiasKind::kLowRank) {
      const LowRankBias& bias = host.low_rank;
      const size_t factor = SizeOf(bias.dtype) * bias.rank;
      FLASHBIAS_RETURN_IF_ERROR(phi_q.Upload(
          bias.phi_q, static_cast<size_t>(host.total_q) * bias.phi_q_heads * factor, stream));
      FLASHBIAS_RETURN_IF_ERROR(phi_k.Upload(
          bias.phi_k, static_cast<size_t>(host.total_kv) * bias.phi_k_heads * factor, stream));
      device.low_rank.phi_q = phi_q.data();
      device.low_rank.phi_k = phi_k.data();
    }
    return device;
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(
    const CudaBackendOptions& options) {
  cuda::DeviceTraits device;
  FLASHBIAS_CUDA(cuda::ReadDeviceTraits(0, &device));
  cudaDeviceProp properties;
  FLASHBIAS_CUDA(cudaGetDeviceProperties(&properties, 0));
  BackendInfo info{.name = "cuda",
                   .devices = {properties.name},
                   .dtypes = {DType::kFloat16, DType::kBFloat16},
                   .fast_head_dims = {32, 64, 128}};
  return std::unique_ptr<CudaBackend>(new CudaBackend(options, device, std::move(info)));
}

CudaBackend::CudaBackend(const CudaBackendOptions& options, const cuda::DeviceTraits& device,
                         BackendInfo info)
    : launches_(options.launches),
      plan_options_{.family = options.family, .skipping = options.skipping},
      device_(device),
      info_(std::move(info)) {}

void CudaBackend::Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
                      Done done) {
  std::move(done)(RunGroups(problems, stats));
}

absl::Status CudaBackend::RunGroups(absl::Span<const AttentionProblem> problems,
                                    absl::Span<ProblemStats> stats) {
  std::vector<std::vector<size_t>> groups;
  for (size_t n = 0; n < problems.size(); ++n) {
    const auto group = cuda::AttentionPlan::GroupOf(problems[n], device_, plan_options_);
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const auto& members) {
      return cuda::AttentionPlan::GroupOf(problems[members.front()], device_, plan_options_) ==
             group;
    });
    if (same == groups.end()) {
      groups.push_back({n});
    } else {
      same->push_back(n);
    }
  }
  for (const std::vector<size_t>& members : groups) {
    FLASHBIAS_RETURN_IF_ERROR(RunGroup(problems, members, stats));
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::RunGroup(absl::Span<const AttentionProblem> problems,
                                   absl::Span<const size_t> members,
                                   absl::Span<ProblemStats> stats) {
  cudaStream_t stream = nullptr;
  FLASHBIAS_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const Stream stream_owner(stream);

  std::vector<DeviceProblem> tensors(members.size());
  std::vector<AttentionProblem> on_device;
  for (size_t n = 0; n < members.size(); ++n) {
    const absl::StatusOr<AttentionProblem> uploaded =
        tensors[n].Upload(problems[members[n]], stream);
    if (!uploaded.ok()) return uploaded.status();
    on_device.push_back(*uploaded);
  }

  absl::StatusOr<cuda::AttentionPlan> plan =
      cuda::AttentionPlan::Create(on_device, device_, plan_options_);
  if (!plan.ok()) return plan.status();
  ++(plan->family() == cuda::KernelFamily::kHopper ? hopper_plans_ : portable_plans_);
  DeviceMemory workspace;
  FLASHBIAS_RETURN_IF_ERROR(Allocate(plan->workspace_bytes(), &workspace));
  void* pinned = nullptr;
  FLASHBIAS_CUDA(cudaMallocHost(&pinned, std::max<size_t>(plan->staging_bytes(), 1)));
  const PinnedMemory staging(static_cast<char*>(pinned));
  FLASHBIAS_CUDA(cudaMemsetAsync(workspace.get(), 0xff, plan->workspace_bytes(), stream));
  FLASHBIAS_RETURN_IF_ERROR(plan->Bind(staging.get(), workspace.get()));
  FLASHBIAS_CUDA(cuda::UploadPlan(*plan, stream));

  unsigned long long launched = 0;
  for (int launch = 0; launch < launches_; ++launch) {
    for (DeviceProblem& problem : tensors) {
      FLASHBIAS_RETURN_IF_ERROR(problem.o.Poison(stream));
      FLASHBIAS_RETURN_IF_ERROR(problem.lse.Poison(stream));
    }
    // Every second time two launches without a pause: the second finds what the first one left.
    for (int n = 0; n <= launch % 2; ++n, ++launched) {
      FLASHBIAS_CUDA(cuda::LaunchAttention(*plan, stream));
    }
    for (DeviceProblem& problem : tensors) {
      FLASHBIAS_RETURN_IF_ERROR(problem.o.Download(stream));
      FLASHBIAS_RETURN_IF_ERROR(problem.lse.Download(stream));
    }
    FLASHBIAS_CUDA(cudaStreamSynchronize(stream));
    for (size_t n = 0; n < tensors.size(); ++n) {
      const std::string o = tensors[n].o.Check(launch);
      const std::string lse = tensors[n].lse.Check(launch);
      if (!o.empty())
        return absl::InternalError(absl::StrCat("o of problem ", members[n], ": ", o));
      if (!lse.empty()) {
        return absl::InternalError(absl::StrCat("lse of problem ", members[n], ": ", lse));
      }
    }
  }

  std::vector<cuda::TileCounts> counts(members.size());
  FLASHBIAS_CUDA(cudaMemcpy(counts.data(), plan->tile_counts(),
                            counts.size() * sizeof(cuda::TileCounts), cudaMemcpyDeviceToHost));
  for (size_t n = 0; n < members.size(); ++n) {
    if (counts[n].computed % launched != 0 || counts[n].skipped % launched != 0) {
      return absl::InternalError(
          absl::StrCat("tile counts of problem ", members[n], " differ between launches"));
    }
    stats[members[n]] = {.tiles_computed = static_cast<int64_t>(counts[n].computed / launched),
                         .tiles_skipped = static_cast<int64_t>(counts[n].skipped / launched)};
    tensors[n].o.CopyToHost();
    tensors[n].lse.CopyToHost();
  }
  return absl::OkStatus();
}

}  // namespace flashbias::support
