// Whether the figures of the load generator tell the truth about a server that a test scripts.
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/attention_client.h"
#include "client/load/engine/arrivals.h"
#include "client/load/engine/load_loop.h"
#include "client/load/engine/pacing.h"
#include "client/load/engine/verdict.h"
#include "gtest/gtest.h"
#include "tests/client/fake_server.h"

namespace flashbias::client {
namespace {

// Sends one small request again and again.
class EchoCaller : public LoadCaller {
 public:
  explicit EchoCaller(const std::string& target) : values_(16, 1.0f) {
    auto client = AttentionClient::Create({.target = target, .retry = {.max_attempts = 1}});
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    const TensorView tensor{.shape = {2, 2, 4}, .data = values_.data()};
    request_ = {.q = tensor, .k = tensor, .v = tensor, .mask = MaskKind::kFull};
  }

  int num_entries() const override { return 1; }
  int num_targets() const override { return 1; }
  void Start(int64_t /*index*/, int /*slot*/, DoneCallback done) override {
    client_->AttendAsync(
        request_, {}, [done = std::move(done)](const absl::StatusOr<AttendResult>& result) mutable {
          std::move(done)({.status = result.status()});
        });
  }

 private:
  std::vector<float> values_;
  AttendRequest request_;
  std::unique_ptr<AttentionClient> client_;
};

// Stands still for a second when call 200 comes, with all that come meanwhile.
class Stall {
 public:
  void Await(int call) {
    absl::Duration until;
    {
      absl::MutexLock lock(&mutex_);
      if (call == 200) until_ = MonotonicNow() + absl::Seconds(1);
      until = until_;
    }
    SleepUntil(until, absl::ZeroDuration());
  }

 private:
  absl::Mutex mutex_;
  absl::Duration until_ ABSL_GUARDED_BY(mutex_);
};

FakeServer::Handler StallingHandler(Stall* stall) {
  return [stall](int call, grpc::ServerContext*, const v1::AttendRequest& request,
                 v1::AttendResponse* response) {
    stall->Await(call);
    return Echo(request, response);
  };
}

grpc::Status EchoHandler(int /*call*/, grpc::ServerContext* /*context*/,
                         const v1::AttendRequest& request, v1::AttendResponse* response) {
  return Echo(request, response);
}

int64_t CountAbove(const LatencyHistogram& histogram, absl::Duration limit) {
  int64_t count = 0;
  for (const LatencyHistogram::Bucket& bucket : histogram.Buckets()) {
    if (bucket.most > limit) count += bucket.count;
  }
  return count;
}

TEST(LoadHonestyTest, AnOpenLoopShowsWhatAStallDoesToItsCallers) {
  Stall stall;
  FakeServer server(StallingHandler(&stall));
  EchoCaller caller(server.target());
  const auto arrivals =
      DrawArrivals({.kind = ArrivalKind::kConstant, .rate = 100, .duration = absl::Seconds(5)});
  ASSERT_TRUE(arrivals.ok());
  const std::atomic<bool> stop{false};
  const LoadResult result = RunOpenLoop(caller, {.arrivals = *arrivals}, stop, nullptr);
  EXPECT_EQ(result.succeeded, 500);
  EXPECT_EQ(server.calls(), 500);
  // A hundred came during the second, one every 10 ms: the first waited 1 s, the last hardly.
  EXPECT_GE(CountAbove(result.latency, absl::Milliseconds(300)), 60);
  EXPECT_GE(result.latency.Percentile(90), absl::Milliseconds(400));
  EXPECT_GE(result.latency.Percentile(99), absl::Milliseconds(900));
}

TEST(LoadHonestyTest, AClosedLoopHidesIt) {
  Stall stall;
  FakeServer server(StallingHandler(&stall));
  EchoCaller caller(server.target());
  const std::atomic<bool> stop{false};
  const LoadResult result =
      RunClosedLoop(caller, {.concurrency = 2, .requests = 1000}, stop, nullptr);
  EXPECT_EQ(result.succeeded, 1000);
  EXPECT_EQ(server.calls(), 1000);
  // Its two callers wait once, and meanwhile nobody sends.
  EXPECT_GE(result.latency.max(), absl::Milliseconds(990));
  EXPECT_LE(result.latency.Percentile(99), absl::Milliseconds(500));
}

TEST(LoadHonestyTest, OfferedAndAchievedAgreeWithWhatTheServerCounted) {
  FakeServer server(&EchoHandler);
  EchoCaller caller(server.target());
  const auto arrivals = DrawArrivals({.rate = 200, .duration = absl::Seconds(4), .seed = 5});
  ASSERT_TRUE(arrivals.ok());
  const std::atomic<bool> stop{false};
  int64_t seen = 0;
  const LoadResult result =
      RunOpenLoop(caller, {.arrivals = *arrivals, .warmup = absl::Seconds(1)}, stop,
                  [&seen](const LoadProgress& progress) { seen += progress.succeeded; });
  const auto sent = static_cast<int64_t>(arrivals->size());
  EXPECT_EQ(server.calls(), sent);
  EXPECT_GT(seen, 0);
  EXPECT_LE(seen, sent);
  int64_t in_warmup = 0;
  for (const absl::Duration arrival : *arrivals) in_warmup += arrival < absl::Seconds(1) ? 1 : 0;
  EXPECT_EQ(result.offered, sent - in_warmup);
  EXPECT_EQ(result.succeeded, result.offered);
  const Rates rates = RatesOf(result);
  // What the schedule has in its last three seconds, by the distance of its arrivals.
  EXPECT_NEAR(rates.offered, static_cast<double>(sent - in_warmup) / 3, 2);
  EXPECT_LE(rates.achieved, rates.offered);
  EXPECT_DOUBLE_EQ(rates.achieved, rates.good);
  EXPECT_NEAR(rates.achieved * absl::ToDoubleSeconds(result.offering),
              static_cast<double>(result.answered_in_time), 1e-6);
}

TEST(LoadHonestyTest, AServerBeyondItsCapacityIsFound) {
  absl::Mutex mutex;
  // One request after the other, each at least 20 ms: at most 50 a second.
  FakeServer server([&mutex](int call, grpc::ServerContext* context,
                             const v1::AttendRequest& request, v1::AttendResponse* response) {
    absl::MutexLock lock(&mutex);
    SleepUntil(MonotonicNow() + absl::Milliseconds(20), absl::ZeroDuration());
    return EchoHandler(call, context, request, response);
  });
  EchoCaller caller(server.target());
  const auto arrivals = DrawArrivals({.rate = 80, .duration = absl::Seconds(3)});
  ASSERT_TRUE(arrivals.ok());
  const std::atomic<bool> stop{false};
  const LoadResult result = RunOpenLoop(caller, {.arrivals = *arrivals}, stop, nullptr);
  EXPECT_EQ(result.succeeded, static_cast<int64_t>(arrivals->size()));
  EXPECT_FALSE(JudgeOpenLoop(result, {}).server_kept_up);
  EXPECT_FALSE(JudgeOpenLoop(result, {}).steady);
  EXPECT_LE(RatesOf(result).achieved, 0.9 * RatesOf(result).offered);
}

TEST(LoadHonestyTest, AServerThatIsNotThereFailsEveryRequest) {
  std::string target;
  {
    FakeServer server(&EchoHandler);
    target = server.target();
  }
  EchoCaller caller(target);
  const auto arrivals = DrawArrivals({.rate = 100, .duration = absl::Seconds(1)});
  ASSERT_TRUE(arrivals.ok());
  const std::atomic<bool> stop{false};
  const LoadResult result = RunOpenLoop(caller, {.arrivals = *arrivals}, stop, nullptr);
  EXPECT_EQ(result.succeeded, 0);
  EXPECT_EQ(result.failed, static_cast<int64_t>(arrivals->size()));
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kUnavailable).count, result.failed);
  EXPECT_FALSE(JudgeOpenLoop(result, {}).valid());
}

}  // namespace
}  // namespace flashbias::client
