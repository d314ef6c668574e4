#include "client/load/load_driver.h"

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

// Answers one request after the other, each after `service`; those that `fails` says with an error.
class QueueCaller : public LoadCaller {
 public:
  explicit QueueCaller(absl::Duration service, std::function<bool(int64_t)> fails = nullptr)
      : service_(service), fails_(std::move(fails)), thread_([this] { Serve(); }) {}
  ~QueueCaller() override {
    {
      absl::MutexLock lock(&mutex_);
      ended_ = true;
    }
    thread_.join();
  }

  int num_entries() const override { return 1; }
  int num_targets() const override { return 1; }
  void Start(int64_t index, int /*slot*/, DoneCallback done) override {
    absl::MutexLock lock(&mutex_);
    queue_.emplace_back(index, std::move(done));
  }

 private:
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_ || !queue_.empty(); }
  void Serve() ABSL_LOCKS_EXCLUDED(mutex_) {
    for (;;) {
      std::pair<int64_t, DoneCallback> next;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &QueueCaller::HasWork));
        if (queue_.empty()) return;
        next = std::move(queue_.front());
        queue_.pop_front();
      }
      absl::SleepFor(service_);
      CallOutcome outcome{.bytes = 100, .tokens = 10};
      if (fails_ != nullptr && fails_(next.first)) outcome.status = absl::InternalError("broken");
      std::move(next.second)(std::move(outcome));
    }
  }

  const absl::Duration service_;
  const std::function<bool(int64_t)> fails_;
  absl::Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<std::pair<int64_t, DoneCallback>> queue_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

// On a busy machine everything is late; what is tested here is not.
constexpr ValidityLimits kPatient = {
    .max_lag = absl::Seconds(100), .max_lag_share = 1e6, .min_achieved_share = 0.5};

std::unique_ptr<RequestMix> SmallMix(std::vector<TraceRow> trace = {}) {
  MixOptions options{.entries = {{.workload = {.heads = 1, .head_dim = 8, .seq_len = 16},
                                  .seq_len = {.min = 16, .max = 16}}},
                     .trace = std::move(trace)};
  absl::StatusOr<std::unique_ptr<RequestMix>> mix = RequestMix::Create(std::move(options));
  EXPECT_TRUE(mix.ok()) << mix.status();
  return mix.ok() ? *std::move(mix) : nullptr;
}

LoadDriver DriverOf(LoadCaller& caller, const RequestMix& mix, const std::atomic<bool>& stop) {
  return LoadDriver(&caller, &mix, nullptr, {.limits = kPatient}, &stop);
}

TEST(LoadDriverTest, ASweepFindsARateThatIsMetAndDrivesTwiceThat) {
  QueueCaller caller(absl::Milliseconds(4));  // at most 250 a second
  const auto mix = SmallMix();
  const std::atomic<bool> stop{false};
  LoadDriver driver = DriverOf(caller, *mix, stop);
  const absl::StatusOr<SweepReport> sweep =
      driver.Sweep({.loop = LoopKind::kOpen,
                    .arrivals = ArrivalKind::kConstant,
                    .max_outstanding = 1024,
                    .duration = absl::Milliseconds(400)},
                   {.slo = absl::Milliseconds(100),
                    .search = {.first_rate = 5, .step_factor = 4, .precision = 0.5}});
  ASSERT_TRUE(sweep.ok()) << sweep.status();
  ASSERT_TRUE(sweep->best_rate.has_value());
  ASSERT_TRUE(sweep->bound_rate.has_value());
  EXPECT_LT(*sweep->best_rate, *sweep->bound_rate);
  EXPECT_LE(*sweep->best_rate, 400);  // a queue of 100 ms takes more than 250 a second for a while
  ASSERT_EQ(sweep->steps.size(), sweep->met.size());
  for (size_t n = 0; n < sweep->steps.size(); ++n) {
    EXPECT_EQ(sweep->met[n], sweep->steps[n].rate <= *sweep->best_rate) << sweep->steps[n].rate;
  }
  ASSERT_TRUE(sweep->overload.has_value());
  EXPECT_DOUBLE_EQ(sweep->overload->rate, 2 * *sweep->best_rate);
}

TEST(LoadDriverTest, ASweepWithoutAFirstRateAsksOneCaller) {
  QueueCaller caller(absl::Milliseconds(20));
  const auto mix = SmallMix();
  const std::atomic<bool> stop{false};
  LoadDriver driver = DriverOf(caller, *mix, stop);
  const absl::StatusOr<SweepReport> sweep =
      driver.Sweep({.loop = LoopKind::kOpen, .duration = absl::Milliseconds(200)},
                   {.slo = absl::Seconds(5), .search = {.max_rate = 1}});
  ASSERT_TRUE(sweep.ok()) << sweep.status();
  ASSERT_FALSE(sweep->steps.empty());
  EXPECT_LE(sweep->steps[0].rate, 25);
}

TEST(LoadDriverTest, ASweepOfAServerThatFailsSaysSo) {
  QueueCaller caller(absl::ZeroDuration(), [](int64_t) { return true; });
  const auto mix = SmallMix();
  const std::atomic<bool> stop{false};
  LoadDriver driver = DriverOf(caller, *mix, stop);
  EXPECT_EQ(driver
                .Sweep({.loop = LoopKind::kOpen, .duration = absl::Milliseconds(100)},
                       {.slo = absl::Seconds(5)})
                .status()
                .code(),
            absl::StatusCode::kUnavailable);
}

TEST(LoadDriverTest, ATraceIsReplayedOnceOrForAsLongAsAsked) {
  QueueCaller caller(absl::ZeroDuration());
  const auto mix = SmallMix({{.arrival = absl::ZeroDuration(), .seq_len = 4, .q_len = 4},
                             {.arrival = absl::Milliseconds(100), .seq_len = 8, .q_len = 8},
                             {.arrival = absl::Milliseconds(200), .seq_len = 2, .q_len = 2}});
  const std::atomic<bool> stop{false};
  LoadDriver driver = DriverOf(caller, *mix, stop);
  LoadShape shape{.loop = LoopKind::kOpen, .trace_times = true, .trace_speed = 10};
  absl::StatusOr<RunReport> run = driver.Run(shape);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->result.offered, 3);
  EXPECT_EQ(run->result.succeeded, 3);
  // A round takes 30 ms: requests at 0, 10, 20, 30, 40 and 50.
  shape.duration = absl::Milliseconds(59);
  run = driver.Run(shape);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->result.offered, 6);
}

TEST(LoadDriverTest, AnOpenLoopEndsAfterTheRequestsThatWereAskedFor) {
  QueueCaller caller(absl::ZeroDuration());
  const auto mix = SmallMix();
  const std::atomic<bool> stop{false};
  LoadDriver driver = DriverOf(caller, *mix, stop);
  const absl::StatusOr<RunReport> run = driver.Run({.loop = LoopKind::kOpen,
                                                    .arrivals = ArrivalKind::kConstant,
                                                    .rate = 1000,
                                                    .warmup = absl::Milliseconds(20),
                                                    .duration = absl::Seconds(10),
                                                    .requests = 30});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->result.offered, 30);
  EXPECT_EQ(run->result.bytes, 30 * 100);
  EXPECT_EQ(run->cpu_bytes, 50 * 100);
}

TEST(LoadDriverTest, AnOpenLoopWithoutADurationLastsAsLongAsItsRequestsTake) {
  QueueCaller caller(absl::ZeroDuration());
  const auto mix = SmallMix();
  const std::atomic<bool> stop{false};
  LoadDriver driver = DriverOf(caller, *mix, stop);
  // Among so many seeds there are some whose gaps are all long.
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    const absl::StatusOr<RunReport> run = driver.Run({.loop = LoopKind::kOpen,
                                                      .rate = 1000,
                                                      .warmup = absl::Milliseconds(seed % 3),
                                                      .requests = 2,
                                                      .seed = seed});
    ASSERT_TRUE(run.ok()) << run.status();
    ASSERT_EQ(run->result.offered, 2) << seed;
  }
}

// Answers at once; a wrong row is in the first answer alone.
class WrongOnceCaller : public LoadCaller {
 public:
  int num_entries() const override { return 1; }
  int num_targets() const override { return 1; }
  void Start(int64_t /*index*/, int /*slot*/, DoneCallback done) override {
    CallOutcome outcome;
    if (!answered_.exchange(true)) {
      outcome.sample = AnswerSample{.request = {.q_len = 16, .kv_len = 16},
                                    .rows = {{.o = std::vector<float>(8, 100.0f)}}};
    }
    std::move(done)(std::move(outcome));
  }

 private:
  std::atomic<bool> answered_{false};
};

TEST(LoadDriverTest, AWrongAnswerIsNotDrivenAgain) {
  WrongOnceCaller caller;
  const auto mix = SmallMix();
  Verifier verifier(mix.get(), /*pool_rows=*/1, /*rows_per_answer=*/1, /*seed=*/1);
  const std::atomic<bool> stop{false};
  // The generator never keeps up, so that every step would be driven again.
  LoadDriver driver(&caller, mix.get(), &verifier, {.limits = {.max_lag = -absl::Seconds(1)}},
                    &stop);
  const absl::StatusOr<SweepReport> sweep =
      driver.Sweep({.loop = LoopKind::kOpen,
                    .arrivals = ArrivalKind::kConstant,
                    .duration = absl::Milliseconds(20)},
                   {.slo = absl::Seconds(1), .search = {.first_rate = 100, .max_steps = 1}});
  ASSERT_TRUE(sweep.ok()) << sweep.status();
  ASSERT_EQ(sweep->steps.size(), 1u);
  ASSERT_TRUE(sweep->steps[0].verify.has_value());
  EXPECT_EQ(sweep->steps[0].verify->wrong, 1);
}

TEST(LoadDriverTest, AScheduleOfATraceHasAnEnd) {
  QueueCaller caller(absl::ZeroDuration());
  const auto mix = SmallMix({{.arrival = absl::ZeroDuration(), .seq_len = 4, .q_len = 4},
                             {.arrival = absl::Nanoseconds(1), .seq_len = 8, .q_len = 8}});
  const std::atomic<bool> stop{false};
  LoadDriver driver = DriverOf(caller, *mix, stop);
  const absl::Status status =
      driver.Run({.loop = LoopKind::kOpen, .trace_times = true, .duration = absl::Seconds(3600)})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("--trace"), std::string::npos) << status;
  EXPECT_NE(status.message().find("accepted: up to so many"), std::string::npos) << status;
}

}  // namespace
}  // namespace flashbias::client
