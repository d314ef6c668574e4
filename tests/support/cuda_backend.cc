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
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/backward_launch.h"
#include "kernels/cuda/backward_plan.h"
#include "kernels/problem_tensors.h"
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
  void* data() const { return data_; }

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

// An output's name and device memory.
struct NamedOutput {
  const char* name;
  std::unique_ptr<DeviceOutput> output;
};

struct DeviceProblem {
  std::vector<DeviceInput> inputs;
  std::vector<NamedOutput> outputs;

  // The problem with its tensors on the device.
  absl::StatusOr<AttentionProblem> Upload(const AttentionProblem& host, cudaStream_t stream) {
    AttentionProblem device = host;
    for (const ProblemTensor& tensor : TensorsOf(host)) {
      if (tensor.is_input) {
        FLASHBIAS_RETURN_IF_ERROR(inputs.emplace_back().Upload(tensor.data, tensor.bytes, stream));
        PointAt(tensor.tensor, inputs.back().data(), &device);
      } else {
        outputs.push_back({tensor.name, std::make_unique<DeviceOutput>()});
        DeviceOutput& output = *outputs.back().output;
        FLASHBIAS_RETURN_IF_ERROR(output.Create(tensor.dtype, tensor.data, tensor.bytes));
        PointAt(tensor.tensor, output.data(), &device);
      }
    }
    return device;
  }
};

cudaError_t LaunchPlan(const cuda::AttentionPlan& plan, cudaStream_t stream) {
  return cuda::LaunchAttention(plan, stream);
}
cudaError_t LaunchPlan(const cuda::BackwardPlan& plan, cudaStream_t stream) {
  return cuda::LaunchBackward(plan, stream);
}

// Whether both are planned together.
bool SharePlans(const AttentionProblem& a, const AttentionProblem& b,
                const cuda::DeviceTraits& device, const cuda::PlanOptions& options) {
  if (a.direction != b.direction) return false;
  if (a.direction == Direction::kBackward) {
    return cuda::BackwardPlan::GroupOf(a, device, options) ==
           cuda::BackwardPlan::GroupOf(b, device, options);
  }
  return cuda::AttentionPlan::GroupOf(a, device, options) ==
         cuda::AttentionPlan::GroupOf(b, device, options);
}

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
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const auto& members) {
      return SharePlans(problems[members.front()], problems[n], device_, plan_options_);
    });
    if (same == groups.end()) {
      groups.push_back({n});
    } else {
      same->push_back(n);
    }
  }
  for (const std::vector<size_t>& members : groups) {
    const bool backward = problems[members.front()].direction == Direction::kBackward;
    FLASHBIAS_RETURN_IF_ERROR(backward ? RunGroup<cuda::BackwardPlan>(problems, members, stats)
                                       : RunGroup<cuda::AttentionPlan>(problems, members, stats));
  }
  return absl::OkStatus();
}

template <typename Plan>
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

  absl::StatusOr<Plan> plan = Plan::Create(on_device, device_, plan_options_);
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
    for (const DeviceProblem& problem : tensors) {
      for (const NamedOutput& o : problem.outputs) {
        FLASHBIAS_RETURN_IF_ERROR(o.output->Poison(stream));
      }
    }
    // Every second time two launches without a pause: the second finds what the first one left.
    for (int n = 0; n <= launch % 2; ++n, ++launched) FLASHBIAS_CUDA(LaunchPlan(*plan, stream));
    for (const DeviceProblem& problem : tensors) {
      for (const NamedOutput& o : problem.outputs) {
        FLASHBIAS_RETURN_IF_ERROR(o.output->Download(stream));
      }
    }
    FLASHBIAS_CUDA(cudaStreamSynchronize(stream));
    for (size_t n = 0; n < tensors.size(); ++n) {
      for (const NamedOutput& o : tensors[n].outputs) {
        const std::string wrong = o.output->Check(launch);
        if (wrong.empty()) continue;
        return absl::InternalError(absl::StrCat(o.name, " of problem ", members[n], ": ", wrong));
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
    for (const NamedOutput& o : tensors[n].outputs) o.output->CopyToHost();
  }
  return absl::OkStatus();
}

}  // namespace flashbias::support
