// What a load loop sends its requests through: one interface, so that a loop knows neither gRPC nor
// attention.
//
// Thread-safety: Start may be called from any thread.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_CALLER_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_CALLER_H_

#include <cstdint>
#include <optional>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/load/engine/load_result.h"
#include "client/load/requests/answer_sample.h"

namespace flashbias::client {

// What one request came to.
struct CallOutcome {
  absl::Status status = absl::OkStatus();
  // When the answer was there, by MonotonicNow(); absent: when `done` is called. For callers that
  // do something with it before that.
  std::optional<absl::Duration> answered = {};
  int entry = 0;  // of the mix
  int target = 0;
  int64_t bytes = 0;                        // of tensors in and out
  int64_t tokens = 0;                       // queries
  StageTotals stages = {};                  // as the server told
  std::optional<AnswerSample> sample = {};  // to be verified
};

class LoadCaller {
 public:
  using DoneCallback = absl::AnyInvocable<void(CallOutcome) &&>;

  virtual ~LoadCaller() = default;

  virtual int num_entries() const = 0;
  virtual int num_targets() const = 0;

  // Sends request `index` of the load (0, 1, 2, ...) without waiting for anything. `slot` is a
  // number that no other request in flight has, below the loop's bound of outstanding ones: memory
  // that a request needs for itself goes by it. `done` is called once, on any thread, perhaps
  // before Start returns; it does not block.
  virtual void Start(int64_t index, int slot, DoneCallback done) = 0;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_CALLER_H_
