#include "client/retrying_call.h"

#include <atomic>
#include <memory>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

// An attempt that ends at once with `status`.
RetryingCall::StartRpc EndsWith(const grpc::Status& status) {
  return [status](const ChannelPool::Connection&, grpc::ClientContext*,
                  const std::function<void(grpc::Status)>& on_done) { on_done(status); };
}

class RetryingCallTest : public testing::Test {
 protected:
  ChannelPool pool_{{.target = "localhost:1", .max_message_bytes = 1}};
};

TEST_F(RetryingCallTest, DoneWaitsUntilTheMemoryIsFree) {
  std::atomic<int> looks = 0;
  std::atomic<bool> free = false;
  absl::Notification done;
  absl::Status result;
  const auto call = std::make_shared<RetryingCall>(
      &pool_, RetryPolicy(), absl::InfiniteFuture(),
      EndsWith({grpc::StatusCode::INVALID_ARGUMENT, "no"}),
      [&] {
        ++looks;
        return free.load();
      },
      [&](absl::Status status) {
        result = std::move(status);
        done.Notify();
      });
  call->Start();
  EXPECT_FALSE(done.WaitForNotificationWithTimeout(absl::Milliseconds(50)));
  call->Cancel();
  EXPECT_FALSE(done.WaitForNotificationWithTimeout(absl::Milliseconds(50)))
      << "cancelling does not make the transport let go";
  free = true;
  ASSERT_TRUE(done.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_EQ(result.message(), "no") << result;
  EXPECT_GT(looks, 2);
}

TEST_F(RetryingCallTest, CancelledByTheServerIsUnavailable) {
  constexpr RetryPolicy kTwice = {.max_attempts = 2,
                                  .initial_backoff = absl::Milliseconds(1),
                                  .max_backoff = absl::Milliseconds(1)};
  for (const int failures : {1, 2}) {
    int attempts = 0;
    absl::Notification done;
    absl::Status result;
    const auto call = std::make_shared<RetryingCall>(
        &pool_, kTwice, absl::InfiniteFuture(),
        [&](const ChannelPool::Connection&, grpc::ClientContext*,
            const std::function<void(grpc::Status)>& on_done) {
          on_done(++attempts <= failures ? grpc::Status::CANCELLED : grpc::Status::OK);
        },
        [] { return true; },
        [&](absl::Status status) {
          result = std::move(status);
          done.Notify();
        });
    call->Start();
    ASSERT_TRUE(done.WaitForNotificationWithTimeout(absl::Seconds(60)));
    EXPECT_EQ(attempts, 2);
    EXPECT_EQ(result.code(),
              failures == 1 ? absl::StatusCode::kOk : absl::StatusCode::kUnavailable);
  }
}

TEST_F(RetryingCallTest, DoneComesAtOnceWhereTheMemoryIsFree) {
  bool done = false;
  const auto call = std::make_shared<RetryingCall>(
      &pool_, RetryPolicy(), absl::InfiniteFuture(), EndsWith(grpc::Status::OK),
      [] { return true; }, [&](const absl::Status& status) { done = status.ok(); });
  call->Start();
  EXPECT_TRUE(done);
}

}  // namespace
}  // namespace flashbias::client
