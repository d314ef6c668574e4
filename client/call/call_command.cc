#include "client/call/call_command.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <variant>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "client/call/npy.h"
#include "client/call/npy_tensor.h"
#include "client/flags/output_file.h"
#include "client/request_validation.h"
#include "kernels/alibi.h"

namespace flashbias::client {
namespace {

constexpr int64_t kDemoHeads = 50;
constexpr int64_t kDemoHeadDim = 32;

// Everything that the request's views point at.
struct CallInputs {
  OwnedTensor q, k, v, phi_q, phi_k, d_o;
  std::vector<float> slopes;
};

absl::Status Load(const std::string& path, std::optional<DType> dtype, const char* dtype_flag,
                  OwnedTensor* tensor) {
  absl::StatusOr<NpyArray> array = ReadNpy(path);
  if (!array.ok()) return array.status();
  absl::StatusOr<OwnedTensor> loaded = ToTensor(path, *std::move(array), dtype, dtype_flag);
  if (!loaded.ok()) return loaded.status();
  *tensor = *std::move(loaded);
  return absl::OkStatus();
}

OwnedTensor RandomNormal(int64_t len, DType dtype, std::mt19937_64* random) {
  OwnedTensor tensor{.dtype = dtype, .shape = {len, kDemoHeads, kDemoHeadDim}};
  const int64_t count = len * kDemoHeads * kDemoHeadDim;
  tensor.data.resize(static_cast<size_t>(count) * SizeOf(dtype));
  std::normal_distribution<float> normal;
  for (int64_t n = 0; n < count; ++n) StoreElement(dtype, tensor.data.data(), n, normal(*random));
  return tensor;
}

absl::Status LoadTensors(const CallCommand& command, CallInputs* inputs) {
  if (!command.d_o.empty()) {
    const std::optional<DType> dtype =
        command.demo ? command.dtype.value_or(DType::kFloat16) : command.dtype;
    if (auto s = Load(command.d_o, dtype, "--dtype", &inputs->d_o); !s.ok()) return s;
  }
  if (command.demo) {
    std::mt19937_64 random(command.demo_seed);
    const DType dtype = command.dtype.value_or(DType::kFloat16);
    for (OwnedTensor* tensor : {&inputs->q, &inputs->k, &inputs->v}) {
      *tensor = RandomNormal(command.demo_len, dtype, &random);
    }
    return absl::OkStatus();
  }
  if (auto s = Load(command.q, command.dtype, "--dtype", &inputs->q); !s.ok()) return s;
  if (auto s = Load(command.k, command.dtype, "--dtype", &inputs->k); !s.ok()) return s;
  return Load(command.v, command.dtype, "--dtype", &inputs->v);
}

absl::Status LoadSlopes(const CallCommand& command, const OwnedTensor& q,
                        std::vector<float>* slopes) {
  const bool standard = command.alibi == "standard";
  if (standard || command.alibi == "seed" || command.demo) {
    if (q.shape.size() != 3 || q.shape[1] > (1 << 20)) {
      return absl::InvalidArgumentError(
          absl::StrCat(command.q, ": shape [", absl::StrJoin(q.shape, ", "),
                       "] has no usable head count", "; accepted: [n, heads, head_dim]"));
    }
    const int heads = static_cast<int>(q.shape[1]);
    *slopes = standard ? StandardAlibiSlopes(heads) : SeedAlibiSlopes(heads);
    return absl::OkStatus();
  }
  OwnedTensor tensor;
  if (auto s = Load(command.alibi, DType::kFloat32, nullptr, &tensor); !s.ok()) {
    // It may be a slip in one of the names.
    return absl::Status(s.code(), absl::StrCat("--alibi: ", absl::string_view(s.message()),
                                               "; accepted: standard, seed or a .npy file"));
  }
  if (tensor.shape.size() != 1 && tensor.shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(command.alibi, ": shape [", absl::StrJoin(tensor.shape, ", "),
                     "] is not one of slopes; accepted: [heads] or [num_sequences, heads]"));
  }
  if (q.shape.size() == 3 && tensor.shape.back() != q.shape[1]) {
    return absl::InvalidArgumentError(
        absl::StrCat(command.alibi, ": shape [", absl::StrJoin(tensor.shape, ", "), "] is for ",
                     tensor.shape.back(), " heads; accepted: those of q, ", q.shape[1]));
  }
  slopes->resize(tensor.data.size() / sizeof(float));
  for (size_t n = 0; n < slopes->size(); ++n) {
    (*slopes)[n] = LoadElement(DType::kFloat32, tensor.data.data(), static_cast<int64_t>(n));
  }
  return absl::OkStatus();
}

absl::StatusOr<AttendRequest> MakeRequest(const CallCommand& command, CallInputs* inputs) {
  if (auto s = LoadTensors(command, inputs); !s.ok()) return s;
  AttendRequest request{.q = inputs->q.view(),
                        .k = inputs->k.view(),
                        .v = inputs->v.view(),
                        .q_lens = command.q_lens,
                        .kv_lens = command.kv_lens,
                        .mask = command.causal ? MaskKind::kCausal : MaskKind::kFull,
                        .left_window = command.left_window,
                        .query_start = command.query_start,
                        .key_start = command.key_start,
                        .softmax_scale = command.scale,
                        .eps = command.eps,
                        .want_lse = !command.lse.empty() || command.demo || !command.d_o.empty()};
  if (!command.phi_q.empty()) {
    const std::optional<DType> dtype = command.phi_dtype;
    if (auto s = Load(command.phi_q, dtype, "--phi_dtype", &inputs->phi_q); !s.ok()) return s;
    if (auto s = Load(command.phi_k, dtype, "--phi_dtype", &inputs->phi_k); !s.ok()) return s;
    request.bias = LowRankFactors{.phi_q = inputs->phi_q.view(), .phi_k = inputs->phi_k.view()};
  } else if (!command.alibi.empty() || command.demo) {
    if (auto s = LoadSlopes(command, inputs->q, &inputs->slopes); !s.ok()) return s;
    request.bias = AlibiSlopes{.slopes = inputs->slopes};
  }
  return request;
}

// Null: not asked for.
struct CallOutputs {
  std::optional<OutputFile> o, lse, dq, dk, dv, dslopes, dphi_q, dphi_k;
};

absl::Status OpenOutput(const std::string& path, std::optional<OutputFile>* output) {
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<OutputFile> file = OutputFile::Open(path);
  if (!file.ok()) return file.status();
  output->emplace(*std::move(file));
  return absl::OkStatus();
}

absl::Status WriteResult(const AttendResult& result, CallOutputs* outputs) {
  if (outputs->o.has_value()) {
    const NpyArray o = ToNpy(result.dtype, result.shape, result.o);
    if (auto s = WriteNpy(&*outputs->o, o.type, o.shape, o.data); !s.ok()) return s;
  }
  if (outputs->lse.has_value()) {
    const absl::string_view bytes(reinterpret_cast<const char*>(result.lse.data()),
                                  result.lse.size() * sizeof(float));
    return WriteNpy(&*outputs->lse, NpyType::kFloat32, {result.shape[0], result.shape[1]}, bytes);
  }
  return absl::OkStatus();
}

// Of the shapes that `request` has.
absl::Status WriteGradients(const AttendBackwardRequest& request, const AttendGradients& gradients,
                            CallOutputs* outputs) {
  struct Tensor {
    std::optional<OutputFile>* file;
    const std::string& data;
    const std::vector<int64_t>& shape;
  };
  const AttendRequest& forward = request.forward;
  for (const Tensor& tensor : {Tensor{&outputs->dq, gradients.dq, forward.q.shape},
                               Tensor{&outputs->dk, gradients.dk, forward.k.shape},
                               Tensor{&outputs->dv, gradients.dv, forward.v.shape}}) {
    if (!tensor.file->has_value()) continue;
    const NpyArray array = ToNpy(gradients.dtype, tensor.shape, tensor.data);
    if (auto s = WriteNpy(&**tensor.file, array.type, array.shape, array.data); !s.ok()) return s;
  }
  const auto write_floats = [](std::optional<OutputFile>* file, const std::vector<float>& values,
                               const std::vector<int64_t>& shape) {
    if (!file->has_value()) return absl::OkStatus();
    return WriteNpy(&**file, NpyType::kFloat32, shape,
                    absl::string_view(reinterpret_cast<const char*>(values.data()),
                                      values.size() * sizeof(float)));
  };
  if (const auto* alibi = std::get_if<AlibiSlopes>(&forward.bias)) {
    return write_floats(&outputs->dslopes, gradients.dslopes,
                        ShapeOfSlopes(*alibi, forward.q.shape[1]));
  }
  if (const auto* low_rank = std::get_if<LowRankFactors>(&forward.bias)) {
    absl::Status written = write_floats(&outputs->dphi_q, gradients.dphi_q, low_rank->phi_q.shape);
    if (!written.ok()) return written;
    return write_floats(&outputs->dphi_k, gradients.dphi_k, low_rank->phi_k.shape);
  }
  return absl::OkStatus();
}

bool WantsBiasGradient(const CallCommand& command) {
  return !command.dslopes.empty() || !command.dphi_q.empty() || !command.dphi_k.empty();
}

// The gradients of a call that gave `result`.
absl::Status RunBackward(const CallCommand& command, const CallInputs& inputs,
                         const AttendRequest& request, const AttendResult& result,
                         AttentionClient* client, CallOutputs* outputs) {
  AttendBackwardRequest backward;
  backward.forward = request;
  backward.o = request.q;
  backward.o.data = result.o.data();
  backward.lse = result.lse;
  backward.d_o = inputs.d_o.view();
  backward.want_bias_gradient = WantsBiasGradient(command);
  const absl::StatusOr<AttendGradients> gradients =
      client->AttendBackward(backward, {.timeout = command.timeout});
  if (!gradients.ok()) return gradients.status();
  return WriteGradients(backward, *gradients, outputs);
}

void Print(const AttendResult& result, absl::Duration elapsed, std::ostream& out) {
  const Timing& t = result.timing;
  out << "o      " << Name(result.dtype) << " [" << absl::StrJoin(result.shape, ", ") << "]\n"
      << "call   " << absl::FormatDuration(elapsed) << "\n"
      << "server receive " << absl::FormatDuration(t.receive) << ", queue "
      << absl::FormatDuration(t.queue) << ", compute " << absl::FormatDuration(t.compute)
      << " (upload " << absl::FormatDuration(t.upload) << ", kernel "
      << absl::FormatDuration(t.kernel) << ", download " << absl::FormatDuration(t.download)
      << "), send " << absl::FormatDuration(t.send) << "\n"
      << "batch  " << t.batch_requests << " requests; tiles computed " << t.tiles_computed
      << ", skipped " << t.tiles_skipped << "\n";
  const auto count =
      std::min<int64_t>(8, static_cast<int64_t>(result.o.size() / SizeOf(result.dtype)));
  out << "o      begins";
  for (int64_t n = 0; n < count; ++n) out << " " << LoadElement(result.dtype, result.o.data(), n);
  out << "\n";
  if (!result.lse.empty()) {
    out << "lse    begins";
    for (size_t n = 0; n < std::min<size_t>(8, result.lse.size()); ++n) out << " " << result.lse[n];
    out << "\n";
  }
}

}  // namespace

absl::Status CheckCallCommand(const CallCommand& command) {
  if (command.client.target.empty()) {
    return absl::InvalidArgumentError("--target is empty; accepted: host:port");
  }
  if (command.left_window < 0) {
    return absl::InvalidArgumentError(absl::StrCat("--left_window is ", command.left_window,
                                                   "; accepted: 0 (no window) and above"));
  }
  if (command.scale.has_value() && !std::isfinite(*command.scale)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--scale is ", *command.scale, "; accepted: finite numbers"));
  }
  if (command.eps.has_value() && !(*command.eps >= 0 && *command.eps <= kMaxEps)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--eps is ", *command.eps, "; accepted: 0 to 2^-8"));
  }
  const bool any_tensor = !command.q.empty() || !command.k.empty() || !command.v.empty();
  if (command.demo && (any_tensor || !command.phi_q.empty() || !command.phi_k.empty())) {
    return absl::InvalidArgumentError("--demo makes its own input; accepted: no tensor files");
  }
  if (command.demo &&
      !(command.alibi.empty() || command.alibi == "standard" || command.alibi == "seed")) {
    return absl::InvalidArgumentError(
        absl::StrCat("--alibi is '", command.alibi, "'; accepted with --demo: standard, seed"));
  }
  if (command.demo && (command.demo_len < 1 || command.demo_len > (1 << 20))) {
    return absl::InvalidArgumentError(
        absl::StrCat("--demo_len is ", command.demo_len, "; accepted: 1 to 1048576"));
  }
  if (!command.demo) {
    if (command.q.empty()) return absl::InvalidArgumentError("--q is missing (or --demo)");
    if (command.k.empty()) return absl::InvalidArgumentError("--k is missing");
    if (command.v.empty()) return absl::InvalidArgumentError("--v is missing");
  }
  if (command.phi_q.empty() != command.phi_k.empty()) {
    return absl::InvalidArgumentError("--phi_q and --phi_k are given together or not at all");
  }
  if (!command.phi_q.empty() && !command.alibi.empty()) {
    return absl::InvalidArgumentError("--alibi and --phi_q exclude each other");
  }
  if (command.phi_dtype.has_value() && command.phi_q.empty()) {
    return absl::InvalidArgumentError("--phi_dtype is given without --phi_q and --phi_k");
  }
  if (!command.out.empty() && command.out == command.lse) {
    return absl::InvalidArgumentError(
        absl::StrCat("--out and --lse are both '", command.out, "'; accepted: different files"));
  }
  const std::pair<const char*, const std::string*> gradients[] = {
      {"--dq", &command.dq},         {"--dk", &command.dk},
      {"--dv", &command.dv},         {"--dslopes", &command.dslopes},
      {"--dphi_q", &command.dphi_q}, {"--dphi_k", &command.dphi_k}};
  for (const auto& [flag, path] : gradients) {
    if (command.d_o.empty() && !path->empty()) {
      return absl::InvalidArgumentError(absl::StrCat(flag, " is given without --d_o"));
    }
  }
  if (!command.dslopes.empty() && command.alibi.empty() && !command.demo) {
    return absl::InvalidArgumentError("--dslopes is given without --alibi");
  }
  if ((!command.dphi_q.empty() || !command.dphi_k.empty()) && command.phi_q.empty()) {
    return absl::InvalidArgumentError("--dphi_q and --dphi_k are given without --phi_q");
  }
  if (command.q_lens.empty() != command.kv_lens.empty()) {
    return absl::InvalidArgumentError("--q_lens and --kv_lens are given together or not at all");
  }
  if (command.timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--timeout is ", absl::FormatDuration(command.timeout), "; accepted: positive durations"));
  }
  return absl::OkStatus();
}

absl::Status RunCallCommand(const CallCommand& command, std::ostream& out) {
  CallInputs inputs;
  absl::StatusOr<AttendRequest> request = MakeRequest(command, &inputs);
  if (!request.ok()) return request.status();
  AttentionClient::Options options = command.client;
  options.max_message_bytes = std::numeric_limits<int32_t>::max();
  absl::StatusOr<std::unique_ptr<AttentionClient>> client =
      AttentionClient::Create(std::move(options));
  if (!client.ok()) return client.status();
  // An answer that cannot be written is not asked for.
  CallOutputs outputs;
  if (auto s = OpenOutput(command.out, &outputs.o); !s.ok()) return s;
  if (auto s = OpenOutput(command.lse, &outputs.lse); !s.ok()) return s;
  for (const auto& [path, output] :
       {std::pair{&command.dq, &outputs.dq}, std::pair{&command.dk, &outputs.dk},
        std::pair{&command.dv, &outputs.dv}, std::pair{&command.dslopes, &outputs.dslopes},
        std::pair{&command.dphi_q, &outputs.dphi_q}, std::pair{&command.dphi_k, &outputs.dphi_k}}) {
    if (auto s = OpenOutput(*path, output); !s.ok()) return s;
  }
  const absl::Time start = absl::Now();
  const absl::StatusOr<AttendResult> result =
      (*client)->Attend(*request, {.timeout = command.timeout});
  if (!result.ok()) return result.status();
  const absl::Duration elapsed = absl::Now() - start;
  if (!command.d_o.empty()) {
    if (auto s = RunBackward(command, inputs, *request, *result, client->get(), &outputs);
        !s.ok()) {
      return s;
    }
  }
  const bool writes = outputs.o.has_value() || outputs.lse.has_value() || !command.d_o.empty();
  if (command.print || command.demo || !writes) Print(*result, elapsed, out);
  return WriteResult(*result, &outputs);
}

}  // namespace flashbias::client
