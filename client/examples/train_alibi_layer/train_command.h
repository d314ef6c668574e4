// What the program does: trains the model with attention on a server, and, to compare, once more
// with attention in this process.
//
// Thread-safety: plain value and functions without shared state.
#ifndef FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_TRAIN_COMMAND_H_
#define FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_TRAIN_COMMAND_H_

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/examples/train_alibi_layer/language_model.h"
#include "kernels/dtype.h"

namespace flashbias::examples {

struct TrainCommand {
  std::string target = {};
  ModelShape shape = {};
  int64_t steps = 20;
  int64_t seq_len = 128;  // predictions of a step, each step's from the next part of the text
  double learning_rate = 0.03;
  std::optional<DType> dtype = {};  // of the wire; absent: float32 where the server takes it
  bool train_slopes = true;
  bool compare = false;
  uint64_t seed = 1;  // of the initial weights
  absl::Duration timeout = absl::Seconds(60);
};

// The largest difference between the losses that the dtype's rounding explains: about ten times
// what a hundred steps of the default shape show.
double LossTolerance(DType dtype);

// INVALID_ARGUMENT: a flag is out of range.
absl::Status CheckTrainCommand(const TrainCommand& command);

// REQUIRES: CheckTrainCommand is OK. Prints a line per step to `out`. Errors: those of the calls;
// OUT_OF_RANGE: the loss is no number; INTERNAL: the losses differ by more than LossTolerance.
absl::Status RunTrainCommand(const TrainCommand& command, std::ostream& out);

}  // namespace flashbias::examples

#endif  // FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_TRAIN_COMMAND_H_
