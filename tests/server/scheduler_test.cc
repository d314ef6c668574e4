#include "server/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/dispatcher.h"
#include "server/metrics.h"
#include "server/mutex.h"
#include "server/scheduler_thread.h"
#include "tests/server/fake_clock.h"
#include "tests/server/puppet_backend.h"

namespace flashbias::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Sets a flag when it goes, so that tests see when a request's memory is released.
class WatchedStorage final : public ProblemStorage {
 public:
  explicit WatchedStorage(std::atomic<int>* alive) : alive_(alive) { ++*alive_; }
  ~WatchedStorage() override { --*alive_; }

 private:
  std::atomic<int>* const alive_;
};

struct Shape {
  DType dtype = DType::kFloat32;
  int head_dim = 32;
  BiasKind bias = BiasKind::kNone;
  int device = kAnyDevice;
  Direction direction = Direction::kForward;
  int64_t rows = 10;  // work is rows * rows
  int64_t bytes = 100;
  absl::Duration deadline = absl::InfiniteDuration();  // from now
};

constexpr float kSlope = 1e-6f;  // so small that nothing is skipped

class SchedulerTest : public testing::Test {
 protected:
  void Start(int slots, const SchedulerOptions& options) {
    backend_ = std::make_unique<PuppetBackend>(slots);
    dispatcher_ = std::make_unique<Dispatcher>(std::vector<AttentionBackend*>{backend_.get()},
                                               &clock_, &metrics_);
    auto scheduler = Scheduler::Create(options, &clock_, dispatcher_.get(), &metrics_);
    ASSERT_TRUE(scheduler.ok()) << scheduler.status();
    scheduler_ = *std::move(scheduler);
  }
  void Start(int slots) { Start(slots, Options()); }
  // With two devices, backend_ the first.
  void StartTwo(int slots) {
    backend_ = std::make_unique<PuppetBackend>(slots);
    second_ = std::make_unique<PuppetBackend>(slots);
    dispatcher_ = std::make_unique<Dispatcher>(
        std::vector<AttentionBackend*>{backend_.get(), second_.get()}, &clock_, &metrics_);
    scheduler_ = *Scheduler::Create(Options(), &clock_, dispatcher_.get(), &metrics_);
  }

  static SchedulerOptions Options() {
    return {.batch = {.max_work = 1000,
                      .max_bytes = 10000,
                      .max_requests = 4,
                      .max_queue_delay = absl::Milliseconds(5)},
            .max_queue_requests = 8,
            .max_queue_bytes = 100000};
  }

  void TearDown() override {
    for (PuppetBackend* const backend : {backend_.get(), second_.get()}) {
      while (backend != nullptr && backend->runs_in_flight() > 0) backend->EndRun();
    }
    scheduler_.reset();
    EXPECT_EQ(alive_, 0) << "storage outlived its request";
    EXPECT_EQ(finishes_, submitted_) << "every request is finished exactly once";
  }

  std::unique_ptr<PendingRequest> MakeRequest(const std::string& name, const Shape& shape) {
    ++submitted_;
    auto* const sequence = &sequences_.emplace_back();
    sequence->q_len = sequence->kv_len = shape.rows;
    AttentionProblem problem;
    problem.dtype = shape.dtype;
    problem.num_q_heads = problem.num_kv_heads = 1;
    problem.head_dim = shape.head_dim;
    problem.total_q = problem.total_kv = shape.rows;
    problem.sequences = absl::MakeConstSpan(sequence, 1);
    problem.mask.causal = false;
    problem.bias_kind = shape.bias;
    problem.alibi.slopes = &kSlope;
    problem.device = shape.device;
    problem.direction = shape.direction;
    return std::make_unique<PendingRequest>(
        PendingRequest::Params{.problem = problem,
                               .storage = std::make_unique<WatchedStorage>(&alive_),
                               .bytes = shape.bytes,
                               .deadline = clock_.Now() + shape.deadline},
        [this, name](Outcome outcome) {
          ++finishes_;
          MutexLock lock(&mutex_);
          outcomes_[name] = std::move(outcome);
        });
  }

  Ticket Submit(const std::string& name, const Shape& shape = {}) {
    return scheduler_->Enqueue(MakeRequest(name, shape));
  }
  absl::Time Poll() { return scheduler_->Poll(clock_.Now()); }

  // "" while unfinished.
  std::string CodeOf(const std::string& name) {
    MutexLock lock(&mutex_);
    const auto at = outcomes_.find(name);
    return at == outcomes_.end() ? "" : absl::StatusCodeToString(at->second.status.code());
  }
  Outcome Take(const std::string& name) {
    MutexLock lock(&mutex_);
    Outcome outcome = std::move(outcomes_.at(name));
    outcomes_.erase(name);
    return outcome;
  }
  void DropOutcomes() {
    MutexLock lock(&mutex_);
    outcomes_.clear();
  }
  std::string Metric(const std::string& line_start) const {
    const std::string text = metrics_.Serialize();
    const size_t at = text.find("\n" + line_start + " ");
    if (at == std::string::npos) return "absent";
    const size_t value = at + line_start.size() + 2;
    return text.substr(value, text.find('\n', value) - value);
  }

  FakeClock clock_;
  Metrics metrics_{"test", "puppet"};
  std::atomic<int> alive_ = 0;
  std::atomic<int> submitted_ = 0;
  std::atomic<int> finishes_ = 0;
  std::deque<Sequence> sequences_;
  Mutex mutex_;
  std::map<std::string, Outcome> outcomes_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<PuppetBackend> backend_;
  std::unique_ptr<PuppetBackend> second_;  // null but after StartTwo
  std::unique_ptr<Dispatcher> dispatcher_;
  std::unique_ptr<Scheduler> scheduler_;
};

// A TearDown of the fixture checks that outcomes' storage is gone, so tests drop what they hold.
#define FINISH_RUNS()                                          \
  do {                                                         \
    while (backend_->runs_in_flight() > 0) backend_->EndRun(); \
    DropOutcomes();                                            \
  } while (false)

TEST_F(SchedulerTest, IdleBackendGetsARequestAtOnce) {
  Start(1);
  Submit("a");
  EXPECT_EQ(Poll(), absl::InfiniteFuture());
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1));
  EXPECT_EQ(CodeOf("a"), "");
  clock_.Advance(absl::Milliseconds(3));
  backend_->EndRun();
  Outcome outcome = Take("a");
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.compute_duration, absl::Milliseconds(3));
  EXPECT_EQ(outcome.queue_duration, absl::ZeroDuration());
  EXPECT_EQ(outcome.batch_requests, 1);
  EXPECT_EQ(outcome.stats.tiles_computed, 10);
  EXPECT_EQ(outcome.stats.tiles_skipped, 3);
  EXPECT_EQ(outcome.batch_end, clock_.Now());
  EXPECT_EQ(outcome.problem.head_dim, 32);
  EXPECT_NE(outcome.storage, nullptr);
}

TEST_F(SchedulerTest, WhatNoDeviceCanEverRunIsRefusedAtOnce) {
  Start(1);
  backend_->set_admit(absl::ResourceExhaustedError("it takes 9 bytes; the limit is 8"));
  Submit("a");
  const Outcome outcome = Take("a");
  EXPECT_EQ(outcome.status, absl::ResourceExhaustedError("it takes 9 bytes; the limit is 8"));
  EXPECT_EQ(outcome.retry_after, std::nullopt) << "coming back helps nobody";
  EXPECT_EQ(Metric("flashbias_rejected_total{reason=\"memory\"}"), "1");
  EXPECT_EQ(Metric("flashbias_queue_requests"), "0");
}

TEST_F(SchedulerTest, WithoutAFreeSlotEverythingWaits) {
  Start(1);
  Submit("a");
  Poll();
  for (const char* name : {"b", "c", "d", "e", "f"}) Submit(name);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Poll(), absl::InfiniteFuture());
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1));
  EXPECT_EQ(Metric("flashbias_queue_requests"), "5");
  EXPECT_EQ(Metric("flashbias_queue_bytes"), "500");
  backend_->EndRun();
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 4)) << "what waited goes together";
  backend_->EndRun();
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 4, 1));
  EXPECT_EQ(Metric("flashbias_queue_requests"), "0");
  FINISH_RUNS();
}

TEST_F(SchedulerTest, TimedCutWhileTheBackendIsBusy) {
  Start(2);
  Submit("a");
  Poll();
  Submit("b");
  const absl::Time due = clock_.Now() + absl::Milliseconds(5);
  EXPECT_EQ(Poll(), due);
  clock_.Advance(absl::Milliseconds(2));
  Submit("c");
  EXPECT_EQ(Poll(), due) << "the oldest request's wait counts";
  clock_.Advance(absl::Milliseconds(3));
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 2));
  backend_->EndRun();
  backend_->EndRun();
  EXPECT_EQ(Take("b").queue_duration, absl::Milliseconds(5));
  EXPECT_EQ(Take("c").queue_duration, absl::Milliseconds(3));
  FINISH_RUNS();
}

TEST_F(SchedulerTest, FullByRequests) {
  Start(2);
  Submit("a");
  Poll();
  for (const char* name : {"b", "c", "d"}) Submit(name);
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1));
  Submit("e");
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 4));
  FINISH_RUNS();
}

TEST_F(SchedulerTest, FullByWorkCutsWhatFits) {
  Start(2);
  Submit("a");
  Poll();
  Submit("b", {.rows = 20});  // work 400
  Submit("c", {.rows = 20});
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1));
  Submit("d", {.rows = 20});
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 2)) << "the third exceeds 1000 and stays";
  EXPECT_EQ(Metric("flashbias_queue_requests"), "1");
  FINISH_RUNS();
}

TEST_F(SchedulerTest, FullByBytesCutsWhatFits) {
  Start(2);
  Submit("a");
  Poll();
  Submit("b", {.bytes = 6000});
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1));
  Submit("c", {.bytes = 6000});
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 1));
  FINISH_RUNS();
}

TEST_F(SchedulerTest, AnOversizedRequestRunsAlone) {
  Start(1);
  Submit("busy");
  Poll();
  Submit("a", {.rows = 10});
  Submit("huge", {.rows = 100});  // work 10000, the budget is 1000
  Submit("b", {.rows = 10});
  for (int n = 0; n < 3; ++n) {
    backend_->EndRun();
    Poll();
  }
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 1, 1, 1)) << "in order, never with company";
  backend_->EndRun();
  for (const char* name : {"a", "huge", "b"}) EXPECT_EQ(CodeOf(name), "OK") << name;
  DropOutcomes();
}

TEST_F(SchedulerTest, ForwardAndBackwardNeverShareABatch) {
  Start(1);
  Submit("busy");
  Poll();
  for (int n = 0; n < 2; ++n) {
    Submit(absl::StrCat("f", n), {.rows = 3});
    clock_.Advance(absl::Milliseconds(1));
    Submit(absl::StrCat("b", n), {.direction = Direction::kBackward, .rows = 3});
    clock_.Advance(absl::Milliseconds(1));
  }
  for (int n = 0; n < 2; ++n) {
    backend_->EndRun();
    Poll();
  }
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 2, 2));
  backend_->EndRun();
  EXPECT_EQ(Take("f1").batch_requests, 2);
  EXPECT_EQ(Take("b0").batch_requests, 2);
  DropOutcomes();
}

TEST_F(SchedulerTest, MixedShapesShareABatchOnlyWhereTheyMatch) {
  Start(1);
  Submit("busy");
  Poll();
  const auto next = [&] { clock_.Advance(absl::Milliseconds(1)); };
  Submit("a1", {.head_dim = 40});
  next();
  Submit("b1", {.dtype = DType::kFloat16, .head_dim = 40});
  next();
  Submit("a2", {.head_dim = 64, .rows = 3});
  next();
  Submit("c1", {.head_dim = 64, .bias = BiasKind::kAlibi});
  next();
  Submit("d1", {.head_dim = 65});
  next();
  Submit("b2", {.dtype = DType::kFloat16, .head_dim = 33});
  for (int n = 0; n < 4; ++n) {
    backend_->EndRun();
    Poll();
  }
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 2, 2, 1, 1)) << "oldest group first";
  backend_->EndRun();
  EXPECT_EQ(Take("a1").batch_requests, 2);
  EXPECT_EQ(Take("a2").batch_requests, 2);
  EXPECT_EQ(Take("b1").batch_requests, 2);
  EXPECT_EQ(Take("c1").batch_requests, 1);
  EXPECT_EQ(Take("d1").batch_requests, 1);
  DropOutcomes();
}

TEST_F(SchedulerTest, RequestsForTwoDevicesNeverShareABatch) {
  StartTwo(1);
  Submit("busy0", {.device = 0});
  Submit("busy1", {.device = 1});
  Poll();
  const auto next = [&] { clock_.Advance(absl::Milliseconds(1)); };
  for (const char* round : {"a", "b"}) {
    Submit(absl::StrCat(round, "0"), {.device = 0});
    next();
    Submit(absl::StrCat(round, "1"), {.device = 1});
    next();
    Submit(absl::StrCat(round, "any"));
    next();
  }
  // The first device's are older, and wait for it all the same.
  second_->EndRun();
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1));
  EXPECT_THAT(second_->run_sizes(), ElementsAre(1, 2));
  second_->EndRun();
  Poll();
  EXPECT_THAT(second_->run_sizes(), ElementsAre(1, 2, 2)) << "those that may run anywhere";
  backend_->EndRun();
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 2));
  backend_->EndRun();
  second_->EndRun();
  DropOutcomes();
}

TEST_F(SchedulerTest, WithOneDeviceItsMemoryKeepsNoRequestsApart) {
  Start(1);
  Submit("busy");
  Poll();
  Submit("a");
  Submit("b", {.device = 0});
  backend_->EndRun();
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 2));
  backend_->EndRun();
  DropOutcomes();
}

TEST_F(SchedulerTest, CancelQueued) {
  Start(1);
  Submit("busy");
  Poll();
  const Ticket ticket = Submit("a");
  EXPECT_EQ(alive_, 2);
  scheduler_->Cancel(ticket, absl::CancelledError("enough"));
  EXPECT_EQ(CodeOf("a"), "CANCELLED");
  EXPECT_EQ(alive_, 1) << "its memory is free at once";
  EXPECT_EQ(Metric("flashbias_queue_requests"), "0");
  EXPECT_EQ(Metric("flashbias_queue_bytes"), "0");
  EXPECT_EQ(Metric("flashbias_cancelled_total{where=\"queue\"}"), "1");
  scheduler_->Cancel(ticket, absl::CancelledError("again"));
  backend_->EndRun();
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1)) << "it is never computed";
  FINISH_RUNS();
}

TEST_F(SchedulerTest, CancelRunning) {
  Start(1);
  const Ticket ticket = Submit("a");
  Submit("b");
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(2));
  scheduler_->Cancel(ticket, absl::CancelledError("enough"));
  EXPECT_EQ(CodeOf("a"), "CANCELLED") << "the caller does not wait for the backend";
  EXPECT_EQ(alive_, 2) << "the backend still writes there";
  EXPECT_EQ(Metric("flashbias_cancelled_total{where=\"running\"}"), "1");
  backend_->EndRun();
  EXPECT_EQ(CodeOf("a"), "CANCELLED") << "the result is discarded";
  EXPECT_EQ(CodeOf("b"), "OK");
  scheduler_->Cancel(ticket, absl::CancelledError("after the end"));
  EXPECT_EQ(Metric("flashbias_cancelled_total{where=\"running\"}"), "1");
  DropOutcomes();
}

TEST_F(SchedulerTest, ADeadlineSeenByTheCallerFirstCountsAsByTheTimer) {
  Start(1);
  Submit("busy");
  Poll();
  const Ticket ticket = Submit("late", {.deadline = absl::Milliseconds(10)});
  clock_.Advance(absl::Milliseconds(10));
  scheduler_->Cancel(ticket, absl::DeadlineExceededError("late"));
  Poll();
  EXPECT_EQ(CodeOf("late"), "DEADLINE_EXCEEDED");
  EXPECT_EQ(Metric("flashbias_rejected_total{reason=\"deadline\"}"), "1");
  EXPECT_EQ(Metric("flashbias_cancelled_total{where=\"queue\"}"), "0");
  EXPECT_EQ(Metric("flashbias_cancelled_total{where=\"running\"}"), "0");
  FINISH_RUNS();
}

TEST_F(SchedulerTest, ACancelBetweenExpiryAndAnswerCountsOnce) {
  Start(1);
  Submit("busy");
  Poll();
  Ticket ticket;
  ++submitted_;
  AttentionProblem problem;
  problem.num_q_heads = 1;
  problem.head_dim = 1;
  const absl::Time deadline = clock_.Now() + absl::Milliseconds(10);
  // Both expire in one Poll; the answer to the first cancels the second, which has left the queue.
  scheduler_->Enqueue(std::make_unique<PendingRequest>(
      PendingRequest::Params{.problem = problem, .bytes = 1, .deadline = deadline}, [&](Outcome) {
        ++finishes_;
        scheduler_->Cancel(ticket, absl::CancelledError("enough"));
      }));
  ticket = Submit("second", {.deadline = absl::Milliseconds(10)});
  clock_.Advance(absl::Milliseconds(10));
  Poll();
  EXPECT_EQ(CodeOf("second"), "CANCELLED");
  EXPECT_EQ(Metric("flashbias_rejected_total{reason=\"deadline\"}"), "1") << "the first";
  EXPECT_EQ(Metric("flashbias_cancelled_total{where=\"queue\"}"), "1") << "the second";
  EXPECT_EQ(Metric("flashbias_cancelled_total{where=\"running\"}"), "0") << "it never ran";
  FINISH_RUNS();
}

TEST_F(SchedulerTest, ExpiredAtEnqueue) {
  Start(1);
  const Ticket ticket = Submit("a", {.deadline = absl::ZeroDuration()});
  EXPECT_EQ(ticket.id, 0u);
  EXPECT_EQ(CodeOf("a"), "DEADLINE_EXCEEDED");
  Poll();
  EXPECT_THAT(backend_->run_sizes(), IsEmpty());
  EXPECT_EQ(Metric("flashbias_rejected_total{reason=\"deadline\"}"), "1");
}

TEST_F(SchedulerTest, ExpiredInTheQueueByTheTimer) {
  Start(1);
  Submit("busy");
  Poll();
  Submit("late", {.deadline = absl::Milliseconds(70)});
  Submit("later", {.deadline = absl::Milliseconds(90)});
  EXPECT_EQ(Poll(), clock_.Now() + absl::Milliseconds(70)) << "the timer stands on the deadline";
  clock_.Advance(absl::Milliseconds(70));
  EXPECT_EQ(Poll(), clock_.Now() + absl::Milliseconds(20));
  EXPECT_EQ(CodeOf("late"), "DEADLINE_EXCEEDED");
  EXPECT_EQ(CodeOf("later"), "");
  EXPECT_EQ(Metric("flashbias_queue_requests"), "1");
  FINISH_RUNS();
  Poll();
  FINISH_RUNS();
}

TEST_F(SchedulerTest, ExpiredAtBatchFormation) {
  Start(1);
  Submit("busy");
  Poll();
  Submit("late", {.deadline = absl::Milliseconds(10)});
  Submit("fine");
  clock_.Advance(absl::Milliseconds(10));
  backend_->EndRun();
  Poll();
  EXPECT_EQ(CodeOf("late"), "DEADLINE_EXCEEDED");
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1, 1)) << "only the other one is computed";
  FINISH_RUNS();
}

TEST_F(SchedulerTest, QueueFullByCount) {
  Start(1);
  Submit("busy");
  Poll();
  for (int n = 0; n < 8; ++n) Submit(absl::StrCat("q", n));
  clock_.Advance(absl::Milliseconds(250));
  EXPECT_TRUE(scheduler_->Refusal(1).has_value());
  const Ticket ticket = Submit("over");
  EXPECT_EQ(ticket.id, 0u);
  {
    const Outcome outcome = Take("over");
    EXPECT_TRUE(absl::IsResourceExhausted(outcome.status));
    EXPECT_THAT(std::string(outcome.status.message()),
                HasSubstr("8 requests wait, the limit is 8"));
    EXPECT_EQ(outcome.retry_after, absl::Milliseconds(250)) << "the age of the oldest";
  }
  scheduler_->Cancel(ticket, absl::CancelledError("not in the queue"));
  EXPECT_EQ(Metric("flashbias_rejected_total{reason=\"queue\"}"), "2");
  scheduler_->Shutdown();
  FINISH_RUNS();
}

TEST_F(SchedulerTest, QueueFullByBytes) {
  Start(1);
  Submit("busy");
  Poll();
  Submit("a", {.bytes = 60000});
  EXPECT_FALSE(scheduler_->Refusal(40000).has_value());
  Submit("b", {.bytes = 40001});
  {
    const Outcome outcome = Take("b");
    EXPECT_TRUE(absl::IsResourceExhausted(outcome.status));
    EXPECT_THAT(std::string(outcome.status.message()),
                HasSubstr("hold 60000 bytes, this one needs 40001, the limit is 100000"));
    EXPECT_EQ(outcome.retry_after, absl::Milliseconds(10)) << "never less";
  }
  Submit("c", {.bytes = 40000});
  EXPECT_EQ(CodeOf("c"), "");
  scheduler_->Shutdown();
  FINISH_RUNS();
}

TEST_F(SchedulerTest, ARequestBeyondTheByteLimitIsTakenWhenNothingWaits) {
  Start(1);
  Submit("huge", {.bytes = 1'000'000});
  EXPECT_EQ(CodeOf("huge"), "");
  Submit("next", {.bytes = 1});
  EXPECT_EQ(CodeOf("next"), "RESOURCE_EXHAUSTED");
  Poll();
  EXPECT_THAT(backend_->run_sizes(), ElementsAre(1));
  FINISH_RUNS();
}

TEST_F(SchedulerTest, BackendErrorFailsTheWholeBatchAndNothingElse) {
  Start(1);
  Submit("a");
  Submit("b");
  Poll();
  backend_->EndRun(absl::DataLossError("device fell over"));
  for (const char* name : {"a", "b"}) {
    const Outcome outcome = Take(name);
    EXPECT_TRUE(absl::IsInternal(outcome.status));
    EXPECT_THAT(std::string(outcome.status.message()), HasSubstr("device fell over"));
    EXPECT_EQ(outcome.storage, nullptr);
  }
  EXPECT_EQ(alive_, 0);
  Submit("c");
  Poll();
  backend_->EndRun();
  EXPECT_EQ(CodeOf("c"), "OK") << "the slot is free again";
  DropOutcomes();
}

TEST_F(SchedulerTest, DrainFinishesWhatWasAccepted) {
  Start(1);
  Submit("running");
  Poll();
  Submit("waiting");
  scheduler_->Drain();
  Submit("new");
  EXPECT_EQ(CodeOf("new"), "UNAVAILABLE");
  EXPECT_EQ(Metric("flashbias_rejected_total{reason=\"draining\"}"), "1");
  EXPECT_FALSE(scheduler_->WaitUntilDrained(absl::InfinitePast()));
  backend_->EndRun();
  EXPECT_FALSE(scheduler_->WaitUntilDrained(absl::InfinitePast())) << "one still waits";
  Poll();
  EXPECT_FALSE(scheduler_->WaitUntilDrained(absl::InfinitePast())) << "one still runs";
  backend_->EndRun();
  EXPECT_TRUE(scheduler_->WaitUntilDrained(absl::InfinitePast()));
  EXPECT_EQ(CodeOf("running"), "OK");
  EXPECT_EQ(CodeOf("waiting"), "OK");
  DropOutcomes();
}

TEST_F(SchedulerTest, ShutdownWithWorkInFlight) {
  Start(1);
  Submit("running");
  Poll();
  Submit("waiting", {.deadline = absl::Seconds(1)});
  Submit("other", {.head_dim = 128});
  scheduler_->Shutdown();
  EXPECT_EQ(CodeOf("waiting"), "UNAVAILABLE");
  EXPECT_EQ(CodeOf("other"), "UNAVAILABLE");
  EXPECT_EQ(CodeOf("running"), "") << "what runs goes on";
  EXPECT_EQ(Metric("flashbias_queue_requests"), "0");
  EXPECT_EQ(Poll(), absl::InfiniteFuture());
  std::thread destroyer([&] { scheduler_.reset(); });
  backend_->EndRun();
  destroyer.join();
  EXPECT_EQ(CodeOf("running"), "OK");
  DropOutcomes();
}

TEST_F(SchedulerTest, AbandonAnswersWhatRunsAndDiscardsItsResult) {
  Start(1);
  Submit("a");
  Poll();
  dispatcher_->Abandon(absl::UnavailableError("no more patience"));
  EXPECT_EQ(CodeOf("a"), "UNAVAILABLE");
  EXPECT_EQ(alive_, 1);
  backend_->EndRun();
  EXPECT_EQ(CodeOf("a"), "UNAVAILABLE");
  EXPECT_EQ(alive_, 0);
}

TEST_F(SchedulerTest, ADestroyedRequestIsStillFinished) {
  MakeRequest("a", {}).reset();
  EXPECT_EQ(CodeOf("a"), "INTERNAL");
}

TEST_F(SchedulerTest, OnlyTheFirstOutcomeCounts) {
  std::unique_ptr<PendingRequest> request = MakeRequest("a", {});
  const std::shared_ptr<Completion> completion = request->completion();
  EXPECT_TRUE(completion->Finish({.status = absl::CancelledError("first")}));
  EXPECT_FALSE(completion->Finish({.status = absl::InternalError("second")}));
  PendingRequest::Succeed(std::move(request), Outcome());
  EXPECT_EQ(CodeOf("a"), "CANCELLED");
}

TEST_F(SchedulerTest, CallbacksMayCallBack) {
  Start(1);
  Submit("busy");
  Poll();
  std::atomic<bool> refused = false;
  ++submitted_;
  AttentionProblem problem;
  problem.num_q_heads = 1;
  problem.head_dim = 1;
  const Ticket ticket = scheduler_->Enqueue(std::make_unique<PendingRequest>(
      PendingRequest::Params{.problem = problem, .bytes = 1}, [&](Outcome) {
        ++finishes_;
        // Would deadlock if the scheduler held its mutex.
        refused = scheduler_->Refusal(1).has_value();
        Submit("from the callback");
      }));
  scheduler_->Cancel(ticket, absl::CancelledError("enough"));
  EXPECT_FALSE(refused);
  EXPECT_EQ(Metric("flashbias_queue_requests"), "1");
  scheduler_->Shutdown();
  FINISH_RUNS();
}

TEST_F(SchedulerTest, BatchMetrics) {
  Start(1);
  Submit("a", {.rows = 10});
  Submit("b", {.rows = 20});
  Poll();
  EXPECT_EQ(Metric("flashbias_batch_requests_sum"), "2");
  EXPECT_EQ(Metric("flashbias_batch_tokens_sum"), "30");
  EXPECT_EQ(Metric("flashbias_batch_work_sum"), "500");
  FINISH_RUNS();
}

TEST_F(SchedulerTest, StartsAtOnceWithoutAPoll) {
  SchedulerOptions options = Options();
  options.start_at_once = true;
  Start(1, options);
  Submit("a");
  EXPECT_EQ(backend_->runs_in_flight(), 1) << "the slot was free";
  Submit("b");
  EXPECT_EQ(backend_->runs_in_flight(), 1);
  backend_->EndRun();
  EXPECT_EQ(CodeOf("a"), "OK");
  EXPECT_EQ(backend_->runs_in_flight(), 0) << "what waits is left to Poll";
  Poll();
  EXPECT_EQ(backend_->runs_in_flight(), 1);
  FINISH_RUNS();
}

TEST_F(SchedulerTest, WhoeverEnqueuesLeavesALongQueueToOthers) {
  SchedulerOptions options = Options();
  options.start_at_once = true;
  Start(16, options);
  Submit("first");  // from now on the backend is busy, and others wait for company
  for (const DType dtype : {DType::kFloat16, DType::kFloat32}) {
    for (const int head_dim : {32, 64, 128}) {
      Submit(absl::StrCat(dtype, head_dim), {.dtype = dtype, .head_dim = head_dim});
    }
  }
  EXPECT_EQ(backend_->runs_in_flight(), 1);
  clock_.Advance(absl::Milliseconds(5));
  Submit("late", {.bias = BiasKind::kAlibi});
  EXPECT_EQ(backend_->runs_in_flight(), 5) << "four of the six that are due";
  Poll();
  EXPECT_EQ(backend_->runs_in_flight(), 7);
  FINISH_RUNS();
}

TEST_F(SchedulerTest, OptionsOutOfRangeAreNamed) {
  const auto error_of = [&](const SchedulerOptions& options) {
    const auto made = Scheduler::Create(options, &clock_, nullptr, &metrics_);
    return std::string(made.status().message());
  };
  SchedulerOptions options = Options();
  options.max_queue_requests = 0;
  EXPECT_THAT(error_of(options), HasSubstr("max_queue_requests is 0"));
  options = Options();
  options.max_queue_bytes = -1;
  EXPECT_THAT(error_of(options), HasSubstr("max_queue_bytes is -1"));
  options = Options();
  options.batch.max_work = 0;
  EXPECT_THAT(error_of(options), HasSubstr("max_batch_work is 0"));
  options = Options();
  options.batch.max_bytes = 0;
  EXPECT_THAT(error_of(options), HasSubstr("max_batch_bytes is 0"));
  options = Options();
  options.batch.max_requests = 0;
  EXPECT_THAT(error_of(options), HasSubstr("max_batch_requests is 0"));
  options = Options();
  options.batch.max_queue_delay = -absl::Seconds(1);
  EXPECT_THAT(error_of(options), HasSubstr("max_queue_delay is -1s"));
}

// With the real thread and many callers: everything is answered, whatever they do. The clock is the
// system's, because the thread sleeps by it.
class ThreadedSchedulerTest : public SchedulerTest, public testing::WithParamInterface<bool> {};

INSTANTIATE_TEST_SUITE_P(StartAtOnce, ThreadedSchedulerTest, testing::Bool());

TEST_P(ThreadedSchedulerTest, CallersAndCancellers) {
  const SystemClock clock;
  PuppetBackend backend(2);
  backend.set_automatic(true);
  Dispatcher dispatcher(std::vector<AttentionBackend*>{&backend}, &clock, &metrics_);
  SchedulerOptions options = Options();
  options.max_queue_requests = 64;
  options.start_at_once = GetParam();
  auto scheduler = *Scheduler::Create(options, &clock, &dispatcher, &metrics_);
  std::atomic<int> answered = 0;
  constexpr int kThreads = 4;
  constexpr int kEach = 200;
  {
    SchedulerThread thread(scheduler.get(), &clock);
    std::vector<std::thread> callers;
    for (int t = 0; t < kThreads; ++t) {
      callers.emplace_back([&, t] {
        AttentionProblem problem;
        problem.num_q_heads = 1;
        problem.head_dim = 16 << (t % 3);
        for (int n = 0; n < kEach; ++n) {
          const Ticket ticket = scheduler->Enqueue(std::make_unique<PendingRequest>(
              PendingRequest::Params{.problem = problem,
                                     .storage = std::make_unique<WatchedStorage>(&alive_),
                                     .bytes = 10},
              [&](Outcome) { ++answered; }));
          if (n % 3 == 0) scheduler->Cancel(ticket, absl::CancelledError("enough"));
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    scheduler->Drain();
    EXPECT_TRUE(scheduler->WaitUntilDrained(absl::Now() + absl::Seconds(60)));
  }
  EXPECT_EQ(answered, kThreads * kEach);
  EXPECT_EQ(alive_, 0);
}

}  // namespace
}  // namespace flashbias::server
