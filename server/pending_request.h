// One validated request on its way from the codec to its answer.
//
//   codec -> PendingRequest -> queue -> Batch -> backend -> Outcome -> response
//
// A PendingRequest owns everything its problem points to, including the output buffers, and moves
// by unique_ptr from one owner to the next; nothing points back. The answer travels through its
// Completion, whose callback runs exactly once: with the result, with an error, with a
// cancellation, or, when a request is destroyed unanswered, with INTERNAL.
//
// Thread-safety: a PendingRequest has one owner at a time and no lock. A Completion is shared and
// thread-safe: whoever finishes it first wins, everyone else is told so.
#ifndef FLASHBIAS_SERVER_PENDING_REQUEST_H_
#define FLASHBIAS_SERVER_PENDING_REQUEST_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/attention_backend.h"
#include "kernels/attention_problem.h"

namespace flashbias::server {

// Estimates are cut off here, beyond any batch budget, so that sums of them cannot overflow.
inline constexpr int64_t kMaxRequestWork = int64_t{1} << 40;

// Keeps alive what a problem points to; the codec derives from it.
class ProblemStorage {
 public:
  ProblemStorage() = default;
  ProblemStorage(const ProblemStorage&) = delete;
  ProblemStorage& operator=(const ProblemStorage&) = delete;
  virtual ~ProblemStorage() = default;
};

// What became of a request.
struct Outcome {
  absl::Status status = {};
  // Set where coming back later may help (RESOURCE_EXHAUSTED): when to.
  std::optional<absl::Duration> retry_after = {};

  // The rest is set only where status is OK.
  AttentionProblem problem = {};                 // its outputs are written
  std::unique_ptr<ProblemStorage> storage = {};  // keeps `problem` alive
  ProblemStats stats = {};
  absl::Duration receive_duration = {};  // decoding and validating
  absl::Duration queue_duration = {};    // from the end of decoding to the start of the batch
  absl::Duration compute_duration = {};  // of the batch
  absl::Time batch_end = {};
  int64_t batch_requests = 0;
};

// A callback that runs once, with the first outcome offered.
class Completion {
 public:
  using Callback = absl::AnyInvocable<void(Outcome) &&>;

  explicit Completion(Callback callback) : callback_(std::move(callback)) {}
  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;

  // Runs the callback and returns true, or drops the outcome and returns false where another
  // outcome came first. Never call it with a mutex held: the callback may do anything.
  bool Finish(Outcome outcome);

  // Marked when the request leaves the queue in a batch; for counting only.
  void set_running() { running_.store(true, std::memory_order_relaxed); }
  bool running() const { return running_.load(std::memory_order_relaxed); }

  bool finished() const { return finished_.load(std::memory_order_acquire); }

 private:
  std::atomic<bool> finished_ = false;
  std::atomic<bool> running_ = false;
  Callback callback_;  // used only by the thread that set finished_
};

class PendingRequest {
 public:
  struct Params {
    AttentionProblem problem = {};                 // validated
    std::unique_ptr<ProblemStorage> storage = {};  // owns all that `problem` points to
    int64_t bytes = 0;                             // of memory held: the message and the outputs
    // Whether that memory is bounded elsewhere, so that the queue's limit of bytes is not asked.
    bool memory_is_reserved = false;
    absl::Duration receive_duration = {};
    absl::Time deadline = absl::InfiniteFuture();
  };

  PendingRequest(Params params, Completion::Callback callback);
  PendingRequest(const PendingRequest&) = delete;
  PendingRequest& operator=(const PendingRequest&) = delete;
  // Finishes with INTERNAL what nobody finished: no caller is ever left waiting.
  ~PendingRequest();

  const AttentionProblem& problem() const { return problem_; }
  int64_t bytes() const { return bytes_; }
  // Of those, what counts against the queue's limit.
  int64_t queue_bytes() const { return memory_is_reserved_ ? 0 : bytes_; }
  // Estimated score elements, 1 to kMaxRequestWork.
  int64_t work() const { return work_; }
  absl::Time deadline() const { return deadline_; }
  absl::Duration receive_duration() const { return receive_duration_; }

  absl::Time enqueue_time() const { return enqueue_time_; }
  void set_enqueue_time(absl::Time time) { enqueue_time_ = time; }

  // Shared, so that a caller can cancel whoever owns the request by then.
  const std::shared_ptr<Completion>& completion() const { return completion_; }

  // Consume the request; Fail returns whether its status is the answer, that is whether no other
  // outcome came first. Succeed hands the outputs over; it adds the problem, its storage and
  // receive_duration to `outcome`.
  static bool Fail(std::unique_ptr<PendingRequest> request, absl::Status status);
  static void Succeed(std::unique_ptr<PendingRequest> request, Outcome outcome);

 private:
  const AttentionProblem problem_;
  std::unique_ptr<ProblemStorage> storage_;
  const int64_t bytes_;
  const bool memory_is_reserved_;
  const int64_t work_;
  const absl::Duration receive_duration_;
  const absl::Time deadline_;
  absl::Time enqueue_time_ = absl::InfinitePast();
  const std::shared_ptr<Completion> completion_;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_PENDING_REQUEST_H_
