// train_alibi_layer: trains an attention layer whose attention is computed by a server. Flags and
// wiring only.
#include <cstdint>
#include <iostream>
#include <string>

#include "absl/flags/flag.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/examples/train_alibi_layer/train_command.h"
#include "client/flags/command_line.h"
#include "client/flags/dtype_flag.h"

ABSL_FLAG(std::string, target, "localhost:8471", "server: host:port or unix:PATH");
ABSL_FLAG(int, heads, 50, "heads of the layer, 1 to 128");
ABSL_FLAG(int, head_dim, 32, "values per head, 1 to 128; heads times this are the channels");
ABSL_FLAG(int64_t, steps, 20, "steps of gradient descent");
ABSL_FLAG(int64_t, seq_len, 128, "tokens a step");
ABSL_FLAG(double, learning_rate, 0.03, "of plain gradient descent, 0 to 1");
ABSL_FLAG(std::string, dtype, "auto",
          "what tensors are sent as: float16, bfloat16, float32, or auto: float32 where the server "
          "takes it, else float16");
ABSL_FLAG(bool, train_slopes, true, "train the ALiBi slopes too; --notrain_slopes: keep them");
ABSL_FLAG(bool, compare, false,
          "train a second model with attention in this process, and compare the losses");
ABSL_FLAG(uint64_t, seed, 1, "of the initial weights");
ABSL_FLAG(absl::Duration, timeout, absl::Seconds(60), "of each call, retries included");

namespace flashbias::examples {
namespace {

absl::StatusOr<TrainCommand> CommandFromFlags() {
  TrainCommand command{
      .target = absl::GetFlag(FLAGS_target),
      .shape = {.num_heads = absl::GetFlag(FLAGS_heads), .head_dim = absl::GetFlag(FLAGS_head_dim)},
      .steps = absl::GetFlag(FLAGS_steps),
      .seq_len = absl::GetFlag(FLAGS_seq_len),
      .learning_rate = absl::GetFlag(FLAGS_learning_rate),
      .train_slopes = absl::GetFlag(FLAGS_train_slopes),
      .compare = absl::GetFlag(FLAGS_compare),
      .seed = absl::GetFlag(FLAGS_seed),
      .timeout = absl::GetFlag(FLAGS_timeout)};
  if (const std::string dtype = absl::GetFlag(FLAGS_dtype); dtype != "auto") {
    command.dtype = client::DTypeFromName(dtype);
    if (!command.dtype.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--dtype is '", dtype, "'; accepted: auto, float16, bfloat16, float32"));
    }
  }
  if (absl::Status status = CheckTrainCommand(command); !status.ok()) return status;
  return command;
}

int Fail(const absl::Status& status, int exit_code) {
  std::cerr << client::ErrorLine("train_alibi_layer", status) << "\n";
  return exit_code;
}

int Main(absl::Span<const char* const> arguments) {
  const absl::StatusOr<client::CommandLine> line = client::ParseFlags(arguments);
  if (!line.ok()) return Fail(line.status(), 2);
  if (line->help) {
    std::cout << client::HelpText("train_alibi_layer --target=localhost:8471 --compare\n",
                                  "client/examples/train_alibi_layer/");
    return 0;
  }
  const absl::StatusOr<TrainCommand> command = CommandFromFlags();
  if (!command.ok()) return Fail(command.status(), 2);
  const absl::Status status = RunTrainCommand(*command, std::cout);
  return status.ok() ? 0 : Fail(status, 1);
}

}  // namespace
}  // namespace flashbias::examples

int main(int argc, char** argv) {
  // Debian's gRPC carries abseil's deadlock detector switched on; it slows every lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return flashbias::examples::Main({argv + 1, static_cast<size_t>(argc > 0 ? argc - 1 : 0)});
}
