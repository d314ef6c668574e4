#include "client/examples/train_alibi_layer/train_command.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/attention_client.h"
#include "client/examples/train_alibi_layer/local_attention.h"
#include "client/examples/train_alibi_layer/remote_attention.h"
#include "client/examples/train_alibi_layer/text.h"

namespace flashbias::examples {
namespace {

using client::AttentionClient;
using client::ServerInfo;

// Each step's bytes follow those of the step before; from the end back to the beginning.
absl::string_view TextOfStep(int64_t step, int64_t seq_len) {
  const auto places = static_cast<int64_t>(Text().size()) - seq_len;
  return Text().substr(static_cast<size_t>(step * seq_len % places),
                       static_cast<size_t>(seq_len) + 1);
}

absl::Status CheckRange(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; accepted: ", least, " to ", most));
}

// The model and where its attention is computed.
struct Trainee {
  absl::StatusOr<double> Step(const TrainCommand& command, int64_t step) {
    const absl::StatusOr<LossAndGradients> result = ComputeGradients(
        weights, TextOfStep(step, command.seq_len), command.train_slopes, attention);
    if (!result.ok()) return result.status();
    if (!std::isfinite(result->loss)) {
      return absl::OutOfRangeError(absl::StrCat("the loss is ", result->loss, " at step ", step,
                                                "; try a smaller --learning_rate"));
    }
    Descend(result->gradients, static_cast<float>(command.learning_rate), &weights);
    return result->loss;
  }

  ModelWeights weights;
  Attention* attention;
};

absl::StatusOr<DType> ChooseDType(const std::optional<DType>& wanted, const ServerInfo& server) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const bool served =
        std::find(server.dtypes.begin(), server.dtypes.end(), dtype) != server.dtypes.end();
    if (served && dtype == wanted.value_or(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--dtype is ", wanted.has_value() ? Name(*wanted) : "auto", "; the server takes ",
      absl::StrJoin(server.dtypes, ", ",
                    [](std::string* out, DType dtype) { absl::StrAppend(out, Name(dtype)); })));
}

}  // namespace

double LossTolerance(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 5e-4;
    case DType::kBFloat16:
      return 5e-3;
    case DType::kFloat32:
      return 2e-6;
  }
  return 0;
}

absl::Status CheckTrainCommand(const TrainCommand& command) {
  if (command.target.empty()) {
    return absl::InvalidArgumentError("--target is empty; accepted: host:port or unix:PATH");
  }
  for (const absl::Status& status :
       {CheckRange("--heads", command.shape.num_heads, 1, 128),
        CheckRange("--head_dim", command.shape.head_dim, 1, 128),
        CheckRange("--steps", command.steps, 1, 1'000'000),
        CheckRange("--seq_len", command.seq_len, 1, static_cast<int64_t>(Text().size()) - 1)}) {
    if (!status.ok()) return status;
  }
  if (!(command.learning_rate >= 0 && command.learning_rate <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--learning_rate is ", command.learning_rate, "; accepted: 0 to 1"));
  }
  if (command.timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--timeout is ", absl::FormatDuration(command.timeout), "; accepted: positive durations"));
  }
  return absl::OkStatus();
}

absl::Status RunTrainCommand(const TrainCommand& command, std::ostream& out) {
  const absl::StatusOr<std::unique_ptr<AttentionClient>> client =
      AttentionClient::Create({.target = command.target});
  if (!client.ok()) return client.status();
  const absl::StatusOr<ServerInfo> server = (*client)->GetServerInfo({.timeout = command.timeout});
  if (!server.ok()) return server.status();
  const absl::StatusOr<DType> dtype = ChooseDType(command.dtype, *server);
  if (!dtype.ok()) return dtype.status();

  RemoteAttention remote_attention(client->get(), *dtype, command.timeout);
  LocalAttention local_attention;
  const ModelWeights initial = InitialWeights(command.shape, command.seed);
  Trainee remote{.weights = initial, .attention = &remote_attention};
  Trainee local{.weights = command.compare ? initial : ModelWeights{},
                .attention = &local_attention};

  out << absl::StrFormat("%d channels, %d heads x %d, %d tokens a step, %s, server on %s\n",
                         command.shape.channels(), command.shape.num_heads, command.shape.head_dim,
                         command.seq_len, Name(*dtype), server->backend)
      << (command.compare ? "step  loss remote  loss local  difference  ms remote\n"
                          : "step  loss remote  ms remote\n");
  double largest_difference = 0;
  for (int64_t step = 0; step < command.steps; ++step) {
    const absl::Duration before = remote_attention.time_in_calls();
    const absl::StatusOr<double> loss = remote.Step(command, step);
    if (!loss.ok()) return loss.status();
    const double ms = absl::ToDoubleMilliseconds(remote_attention.time_in_calls() - before);
    if (!command.compare) {
      out << absl::StrFormat("%4d  %11.6f  %9.1f\n", step, *loss, ms) << std::flush;
      continue;
    }
    const absl::StatusOr<double> local_loss = local.Step(command, step);
    if (!local_loss.ok()) return local_loss.status();
    const double difference = std::abs(*loss - *local_loss);
    largest_difference = std::max(largest_difference, difference);
    out << absl::StrFormat("%4d  %11.6f  %10.6f  %10.1e  %9.1f\n", step, *loss, *local_loss,
                           difference, ms)
        << std::flush;
  }

  if (command.train_slopes) {
    double moved = 0;
    for (size_t h = 0; h < initial.layer.slopes.size(); ++h) {
      moved = std::max<double>(moved,
                               std::abs(remote.weights.layer.slopes[h] - initial.layer.slopes[h]));
    }
    out << absl::StrFormat("slopes moved by up to %.1e\n", moved);
  }
  if (command.compare) {
    const double tolerance = LossTolerance(*dtype);
    out << absl::StrFormat("largest difference %.1e; accepted with %s: %.0e\n", largest_difference,
                           Name(*dtype), tolerance);
    if (largest_difference > tolerance) {
      return absl::InternalError(
          absl::StrFormat("remote and local losses differ by %.1e; accepted with %s: %.0e",
                          largest_difference, Name(*dtype), tolerance));
    }
  }
  return absl::OkStatus();
}

}  // namespace flashbias::examples
