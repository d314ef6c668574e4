#include "client/attention_client.h"

#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/synchronization/barrier.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/fake_server.h"
#include "tests/client/stalled_server.h"

namespace flashbias::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A small request and the memory that it points at.
struct TestRequest {
  std::vector<float> q = std::vector<float>(3 * 4 * 8, 0.5f);
  std::vector<float> k = std::vector<float>(5 * 2 * 8, 0.25f);
  std::vector<float> slopes = {1, 2, 3, 4};
  AttendRequest request = {.q = {.shape = {3, 4, 8}, .data = q.data()},
                           .k = {.shape = {5, 2, 8}, .data = k.data()},
                           .v = {.shape = {5, 2, 8}, .data = k.data()},
                           .mask = MaskKind::kCausal};
};

constexpr RetryPolicy kFastRetry = {.max_attempts = 4,
                                    .initial_backoff = absl::Milliseconds(2),
                                    .max_backoff = absl::Milliseconds(8)};

std::unique_ptr<AttentionClient> Connect(const FakeServer& server,
                                         AttentionClient::Options options = {.retry = kFastRetry}) {
  options.target = server.target();
  absl::StatusOr<std::unique_ptr<AttentionClient>> client =
      AttentionClient::Create(std::move(options));
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

FakeServer::Handler EchoHandler() {
  return [](int, grpc::ServerContext*, const v1::AttendRequest& request,
            v1::AttendResponse* response) { return Echo(request, response); };
}

// Answers when the client has gone away; never by itself for as long as a test takes.
FakeServer::Handler HangingHandler(absl::Notification* reached) {
  return [reached](int call, grpc::ServerContext* context, const v1::AttendRequest&,
                   v1::AttendResponse*) {
    if (call == 0) reached->Notify();
    for (int n = 0; n < 4000 && !context->IsCancelled(); ++n) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    return grpc::Status(grpc::StatusCode::INTERNAL, "nobody cancelled");
  };
}

TEST(AttentionClientTest, CreateRefusesOptionsOutOfRange) {
  const auto code = [](AttentionClient::Options options) {
    return AttentionClient::Create(std::move(options)).status().code();
  };
  EXPECT_EQ(code({.target = "localhost:1"}), absl::StatusCode::kOk);
  EXPECT_EQ(code({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.target = "x:1", .num_connections = 0}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.target = "x:1", .num_connections = 257}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.target = "x:1", .default_timeout = absl::ZeroDuration()}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.target = "x:1", .retry = {.max_attempts = 0}}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.target = "x:1", .max_message_bytes = 0}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.target = "x:1", .stream_above_bytes = -1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.target = "x:1", .max_message_bytes = int64_t{1} << 31}),
            absl::StatusCode::kInvalidArgument);
}

TEST(AttentionClientTest, SendsWhatTheRequestSaysAndReturnsTheAnswer) {
  v1::AttendRequest received;
  FakeServer server([&](int, grpc::ServerContext*, const v1::AttendRequest& request,
                        v1::AttendResponse* response) {
    received = request;
    return Echo(request, response);
  });
  TestRequest test;
  test.request.q_lens = {1, 2};
  test.request.kv_lens = {2, 3};
  test.request.left_window = 7;
  test.request.query_start = {-5, 6};
  test.request.key_start = {8, -9};
  test.request.softmax_scale = 0.75f;
  test.request.eps = 0.0f;
  test.request.want_lse = true;
  test.slopes = {1, 2, 3, 4, 5, 6, 7, 8};
  test.request.bias = AlibiSlopes{.slopes = test.slopes};
  const auto result = Connect(server)->Attend(test.request);
  ASSERT_TRUE(result.ok()) << result.status();

  EXPECT_THAT(received.q_lens(), testing::ElementsAre(1, 2));
  EXPECT_THAT(received.kv_lens(), testing::ElementsAre(2, 3));
  EXPECT_EQ(received.mask(), v1::MASK_CAUSAL);
  EXPECT_EQ(received.left_window(), 7);
  EXPECT_THAT(received.query_start(), testing::ElementsAre(-5, 6));
  EXPECT_THAT(received.key_start(), testing::ElementsAre(8, -9));
  EXPECT_EQ(received.softmax_scale(), 0.75f);
  EXPECT_TRUE(received.has_eps());
  EXPECT_EQ(received.eps(), 0.0f);
  EXPECT_TRUE(received.want_lse());
  EXPECT_EQ(received.q().dtype(), v1::DTYPE_FLOAT32);
  EXPECT_THAT(received.q().shape(), testing::ElementsAre(3, 4, 8));
  EXPECT_EQ(received.q().data().size(), 4u * 3 * 4 * 8);
  EXPECT_THAT(received.alibi().slopes().shape(), testing::ElementsAre(2, 4));
  EXPECT_EQ(0, std::memcmp(received.alibi().slopes().data().data(), test.slopes.data(), 4 * 8));

  EXPECT_EQ(result->dtype, DType::kFloat32);
  EXPECT_EQ(result->shape, (std::vector<int64_t>{3, 4, 8}));
  EXPECT_EQ(0, std::memcmp(result->o.data(), test.q.data(), result->o.size()));
  ASSERT_EQ(result->lse.size(), 12u);
  EXPECT_EQ(result->lse[11], 11.0f);
  EXPECT_EQ(result->timing.compute, absl::Milliseconds(250));
  EXPECT_EQ(result->timing.upload, absl::Seconds(0.0625));
  EXPECT_EQ(result->timing.kernel, absl::Seconds(0.125));
  EXPECT_EQ(result->timing.download, absl::Seconds(0.03125));
  EXPECT_EQ(result->timing.batch_requests, 3);
  EXPECT_EQ(result->timing.tiles_computed, 7);
  EXPECT_EQ(result->timing.tiles_skipped, 1);
}

TEST(AttentionClientTest, AbsentFieldsStayAbsentAndFactorsAreSent) {
  v1::AttendRequest received;
  FakeServer server([&](int, grpc::ServerContext*, const v1::AttendRequest& request,
                        v1::AttendResponse* response) {
    received = request;
    return Echo(request, response);
  });
  TestRequest test;
  test.request.mask = MaskKind::kFull;
  const std::vector<uint16_t> factor(5 * 4 * 2, 0x3c00);
  test.request.bias = LowRankFactors{
      .phi_q = {.dtype = DType::kFloat16, .shape = {3, 1, 2}, .data = factor.data()},
      .phi_k = {.dtype = DType::kFloat16, .shape = {5, 4, 2}, .data = factor.data()}};
  ASSERT_TRUE(Connect(server)->Attend(test.request).ok());
  EXPECT_EQ(received.mask(), v1::MASK_FULL);
  EXPECT_FALSE(received.has_softmax_scale());
  EXPECT_FALSE(received.has_eps());
  EXPECT_FALSE(received.want_lse());
  EXPECT_EQ(received.low_rank().phi_q().data().size(), 12u);
  EXPECT_EQ(received.low_rank().phi_k().data().size(), 80u);
}

TEST(AttentionClientTest, InvalidRequestsAreNotSent) {
  FakeServer server(EchoHandler());
  TestRequest test;
  test.request.mask = MaskKind::kUnspecified;
  const auto result = Connect(server)->Attend(test.request);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("mask"));
  EXPECT_EQ(server.calls(), 0);
}

TEST(AttentionClientTest, ServerErrorsKeepCodeAndMessageAndAreFinal) {
  for (const auto code :
       {grpc::StatusCode::INVALID_ARGUMENT, grpc::StatusCode::RESOURCE_EXHAUSTED,
        grpc::StatusCode::INTERNAL, grpc::StatusCode::UNIMPLEMENTED, grpc::StatusCode::ABORTED}) {
    FakeServer server(
        [code](int, grpc::ServerContext*, const v1::AttendRequest&, v1::AttendResponse*) {
          return grpc::Status(code, "head_dim is 7; accepted: \xc3\xa9 8");
        });
    const auto result = Connect(server)->Attend(TestRequest().request);
    EXPECT_EQ(static_cast<int>(result.status().code()), static_cast<int>(code));
    EXPECT_EQ(std::string(result.status().message()), "head_dim is 7; accepted: \xc3\xa9 8");
    EXPECT_EQ(server.calls(), 1);
  }
}

TEST(AttentionClientTest, TriesAgainWhenUnavailable) {
  FakeServer server([](int call, grpc::ServerContext*, const v1::AttendRequest& request,
                       v1::AttendResponse* response) {
    if (call < 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
    return Echo(request, response);
  });
  TestRequest test;
  const auto result = Connect(server)->Attend(test.request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(server.calls(), 3);
  EXPECT_EQ(0, std::memcmp(result->o.data(), test.q.data(), result->o.size()));
}

TEST(AttentionClientTest, GivesUpAfterMaxAttempts) {
  FakeServer server([](int, grpc::ServerContext*, const v1::AttendRequest&, v1::AttendResponse*) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  const auto result = Connect(server)->Attend(TestRequest().request);
  EXPECT_EQ(result.status(), absl::UnavailableError("draining"));
  EXPECT_EQ(server.calls(), 4);
}

TEST(AttentionClientTest, StopsTryingWhenAnotherErrorComes) {
  FakeServer server(
      [](int call, grpc::ServerContext*, const v1::AttendRequest&, v1::AttendResponse*) {
        return call == 0 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining")
                         : grpc::Status(grpc::StatusCode::INTERNAL, "broken");
      });
  const auto result = Connect(server)->Attend(TestRequest().request);
  EXPECT_EQ(result.status(), absl::InternalError("broken"));
  EXPECT_EQ(server.calls(), 2);
}

TEST(AttentionClientTest, PushbackIsALowerBoundOfTheWait) {
  FakeServer server([](int call, grpc::ServerContext* context, const v1::AttendRequest& request,
                       v1::AttendResponse* response) {
    if (call > 0) return Echo(request, response);
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "60");
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  const absl::Time start = absl::Now();
  EXPECT_TRUE(Connect(server)->Attend(TestRequest().request).ok());
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(60));
  EXPECT_EQ(server.calls(), 2);
}

TEST(AttentionClientTest, PushbackBeyondTheDeadlineOrNegativeEndsTheCall) {
  for (const char* pushback : {"60000", "-1"}) {
    FakeServer server([pushback](int, grpc::ServerContext* context, const v1::AttendRequest&,
                                 v1::AttendResponse*) {
      context->AddTrailingMetadata("grpc-retry-pushback-ms", pushback);
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
    });
    const auto result =
        Connect(server)->Attend(TestRequest().request, {.timeout = absl::Seconds(20)});
    EXPECT_EQ(result.status(), absl::UnavailableError("draining"));
    EXPECT_EQ(server.calls(), 1);
  }
}

TEST(AttentionClientTest, NoServerIsUnavailable) {
  std::string target;
  { target = FakeServer(EchoHandler()).target(); }
  auto client = AttentionClient::Create({.target = target, .retry = kFastRetry});
  ASSERT_TRUE(client.ok());
  EXPECT_EQ((*client)->Attend(TestRequest().request).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(AttentionClientTest, DeadlineEndsTheCall) {
  absl::Notification reached;
  FakeServer server(HangingHandler(&reached));
  const auto client = Connect(server, {.default_timeout = absl::Milliseconds(100)});
  const absl::StatusCode exceeded = absl::StatusCode::kDeadlineExceeded;
  TestRequest test;
  EXPECT_EQ(client->Attend(test.request).status().code(), exceeded);
  EXPECT_EQ(client->Attend(test.request, {.timeout = absl::Milliseconds(50)}).status().code(),
            exceeded);
  EXPECT_EQ(client
                ->Attend(test.request, {.timeout = absl::Hours(1),
                                        .deadline = absl::Now() + absl::Milliseconds(50)})
                .status()
                .code(),
            exceeded);
  EXPECT_EQ(
      client->Attend(test.request, {.deadline = absl::Now() - absl::Seconds(1)}).status().code(),
      exceeded);
  EXPECT_EQ(client->Attend(test.request, {.timeout = absl::Milliseconds(-1)}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(AttentionClientTest, CancellationEndsCallsInFlight) {
  absl::Notification reached;
  FakeServer server(HangingHandler(&reached));
  const auto client = Connect(server);
  const auto cancellation = std::make_shared<Cancellation>();
  TestRequest test;
  absl::BlockingCounter done(2);
  std::atomic<int> cancelled{0};
  for (int n = 0; n < 2; ++n) {
    client->AttendAsync(test.request, {.cancellation = cancellation},
                        [&](const absl::StatusOr<AttendResult>& result) {
                          if (absl::IsCancelled(result.status())) ++cancelled;
                          done.DecrementCount();
                        });
  }
  reached.WaitForNotification();
  cancellation->Cancel();
  done.Wait();
  EXPECT_EQ(cancelled, 2);
  // And every later call that is given it.
  EXPECT_EQ(client->Attend(test.request, {.cancellation = cancellation}).status().code(),
            absl::StatusCode::kCancelled);
}

TEST(AttentionClientTest, CancellationEndsTheWaitBetweenAttempts) {
  absl::Notification reached;
  FakeServer server(
      [&](int call, grpc::ServerContext*, const v1::AttendRequest&, v1::AttendResponse*) {
        if (call == 0) reached.Notify();
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
      });
  const auto client = Connect(
      server, {.default_timeout = absl::InfiniteDuration(),
               .retry = {.initial_backoff = absl::Hours(1), .max_backoff = absl::Hours(1)}});
  const auto cancellation = std::make_shared<Cancellation>();
  TestRequest test;
  absl::Notification done;
  absl::Status status;
  client->AttendAsync(test.request, {.cancellation = cancellation},
                      [&](const absl::StatusOr<AttendResult>& result) {
                        status = result.status();
                        done.Notify();
                      });
  reached.WaitForNotification();
  cancellation->Cancel();
  done.WaitForNotification();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(server.calls(), 1);
}

TEST(AttentionClientTest, DestructionCancelsCallsAndWaitsForTheirCallbacks) {
  absl::Notification reached;
  FakeServer server(HangingHandler(&reached));
  auto client = Connect(server, {.num_connections = 2});
  TestRequest test;
  std::atomic<int> cancelled{0};
  for (int n = 0; n < 4; ++n) {
    client->AttendAsync(test.request, {}, [&](const absl::StatusOr<AttendResult>& result) {
      absl::SleepFor(absl::Milliseconds(20));
      if (absl::IsCancelled(result.status())) ++cancelled;
    });
  }
  reached.WaitForNotification();
  client.reset();
  EXPECT_EQ(cancelled, 4);
}

TEST(AttentionClientTest, DestructionEndsWaitsBetweenAttempts) {
  absl::Notification reached;
  FakeServer server(
      [&](int call, grpc::ServerContext*, const v1::AttendRequest&, v1::AttendResponse*) {
        if (call == 0) reached.Notify();
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
      });
  auto client = Connect(
      server, {.default_timeout = absl::InfiniteDuration(),
               .retry = {.initial_backoff = absl::Hours(1), .max_backoff = absl::Hours(1)}});
  TestRequest test;
  std::atomic<int> cancelled{0};
  client->AttendAsync(test.request, {}, [&](const absl::StatusOr<AttendResult>& result) {
    if (absl::IsCancelled(result.status())) ++cancelled;
  });
  reached.WaitForNotification();
  client.reset();
  EXPECT_EQ(cancelled, 1);
}

// With a limit too small to stream.
TEST(AttentionClientTest, MessageLimitIsCheckedBeforeSending) {
  FakeServer server(EchoHandler());
  TestRequest test;
  // q 384 bytes, k and v 160 each.
  const auto result = Connect(server, {.max_message_bytes = 1023})->Attend(test.request);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(result.status().message()),
              AllOf(HasSubstr("the request"), HasSubstr("1024 bytes"), HasSubstr("1023")));
  EXPECT_EQ(server.calls(), 0);
  EXPECT_TRUE(Connect(server, {.max_message_bytes = 1200})->Attend(test.request).ok());
}

TEST(AttentionClientTest, AnswersBeyondTheLimitAreNotAskedFor) {
  FakeServer server(EchoHandler());
  const std::vector<float> data(1000, 1.0f);
  const AttendRequest request{.q = {.shape = {240, 1, 1}, .data = data.data()},
                              .k = {.shape = {1, 1, 1}, .data = data.data()},
                              .v = {.shape = {1, 1, 1}, .data = data.data()},
                              .mask = MaskKind::kFull,
                              .want_lse = true};
  const auto result = Connect(server, {.max_message_bytes = 1000})->Attend(request);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(result.status().message()),
              AllOf(HasSubstr("the answer"), HasSubstr("1920 bytes"), HasSubstr("1000")));
  EXPECT_EQ(server.calls(), 0);
}

TEST(AttentionClientTest, MessagesBeyondGrpcsOwnDefaultPass) {
  FakeServer server(EchoHandler());
  const std::vector<float> data(6 << 20, 1.0f);
  const AttendRequest request{.q = {.shape = {2 << 20, 1, 1}, .data = data.data()},
                              .k = {.shape = {1, 1, 1}, .data = data.data()},
                              .v = {.shape = {1, 1, 1}, .data = data.data()},
                              .mask = MaskKind::kFull};
  const auto result = Connect(server)->Attend(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->o.size(), size_t{8} << 20);
}

TEST(AttentionClientTest, SeveralConnectionsAreAllUsed) {
  absl::Barrier all_there(6);
  FakeServer server([&](int, grpc::ServerContext*, const v1::AttendRequest& request,
                        v1::AttendResponse* response) {
    all_there.Block();
    return Echo(request, response);
  });
  const auto client = Connect(server, {.num_connections = 3});
  TestRequest test;
  absl::BlockingCounter done(6);
  for (int n = 0; n < 6; ++n) {
    client->AttendAsync(test.request, {}, [&](const absl::StatusOr<AttendResult>& result) {
      EXPECT_TRUE(result.ok()) << result.status();
      done.DecrementCount();
    });
  }
  done.Wait();
  EXPECT_EQ(server.connections(), 3u);
}

TEST(AttentionClientTest, RetriesTakeAnotherConnection) {
  // The first call stays on one connection. The second fails on the other, which then carries the
  // fewest calls, and has to move over all the same.
  absl::Notification first_arrived, second_ended;
  std::string failed_peer, retried_peer;
  FakeServer server([&](int call, grpc::ServerContext* context, const v1::AttendRequest& request,
                        v1::AttendResponse* response) {
    if (call == 0) {
      first_arrived.Notify();
      second_ended.WaitForNotification();
    } else if (call == 1) {
      failed_peer = context->peer();
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "broken");
    } else {
      retried_peer = context->peer();
    }
    return Echo(request, response);
  });
  const auto client = Connect(server, {.num_connections = 2, .retry = kFastRetry});
  TestRequest test;
  std::thread first([&] { EXPECT_TRUE(client->Attend(test.request).ok()); });
  first_arrived.WaitForNotification();
  EXPECT_TRUE(client->Attend(test.request).ok());
  second_ended.Notify();
  first.join();
  EXPECT_EQ(server.calls(), 3);
  EXPECT_NE(failed_peer, retried_peer);
}

TEST(AttentionClientTest, ManyThreadsShareOneClient) {
  FakeServer server(EchoHandler());
  const auto client = Connect(server, {.num_connections = 2});
  std::vector<std::thread> threads;
  std::atomic<int> succeeded{0};
  for (int n = 0; n < 8; ++n) {
    threads.emplace_back([&] {
      TestRequest test;
      for (int call = 0; call < 20; ++call) succeeded += client->Attend(test.request).ok() ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(succeeded, 160);
}

TEST(AttentionClientTest, AnswersThatDoNotFitTheRequestAreInternal) {
  using Fault = void (*)(v1::AttendResponse*);
  const Fault faults[] = {
      [](v1::AttendResponse* r) { r->Clear(); },
      [](v1::AttendResponse* r) { r->mutable_o()->set_dtype(v1::DTYPE_FLOAT16); },
      [](v1::AttendResponse* r) { r->mutable_o()->set_dtype(v1::DTYPE_UNSPECIFIED); },
      [](v1::AttendResponse* r) { r->mutable_o()->set_shape(0, 2); },
      [](v1::AttendResponse* r) { r->mutable_o()->add_shape(1); },
      [](v1::AttendResponse* r) { r->mutable_o()->mutable_data()->pop_back(); },
      [](v1::AttendResponse* r) { r->clear_lse(); },
      [](v1::AttendResponse* r) { r->mutable_lse()->set_dtype(v1::DTYPE_FLOAT16); },
      [](v1::AttendResponse* r) { r->mutable_lse()->set_shape(1, 3); },
      [](v1::AttendResponse* r) { r->mutable_lse()->mutable_data()->pop_back(); },
      [](v1::AttendResponse* r) { r->mutable_lse()->mutable_data()->resize(4); }};
  FakeServer server([&](int call, grpc::ServerContext*, const v1::AttendRequest& request,
                        v1::AttendResponse* response) {
    Echo(request, response);
    faults[call](response);
    return grpc::Status::OK;
  });
  const auto client = Connect(server);
  TestRequest test;
  test.request.want_lse = true;
  for (size_t n = 0; n < std::size(faults); ++n) {
    const auto result = client->Attend(test.request);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal) << n;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("the server answered")) << n;
  }
}

TEST(AttentionClientTest, AnswersGoWhereTheCallerSays) {
  FakeServer server(EchoHandler());
  const auto client = Connect(server);
  TestRequest test;
  test.request.want_lse = true;
  std::vector<char> o(test.q.size() * sizeof(float), '?');
  std::vector<float> lse(3 * 4, -1);
  CallOptions options;
  options.result = {.o = absl::MakeSpan(o), .lse = absl::MakeSpan(lse)};
  const auto result = client->Attend(test.request, options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(0, std::memcmp(o.data(), test.q.data(), o.size()));
  EXPECT_EQ(lse[11], 11.0f);
  EXPECT_TRUE(result->o.empty());
  EXPECT_TRUE(result->lse.empty());
  EXPECT_EQ(result->shape, (std::vector<int64_t>{3, 4, 8}));

  options.result.o = absl::MakeSpan(o.data(), o.size() - 1);
  absl::Status status = client->Attend(test.request, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("result.o has 383 bytes; accepted: 384"), HasSubstr("[3, 4, 8]")));
  options.result = {.lse = absl::MakeSpan(lse.data(), 11)};
  status = client->Attend(test.request, options).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("result.lse has 11 values; accepted: 12"));
  test.request.want_lse = false;
  status = client->Attend(test.request, options).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("because want_lse is false"));
  EXPECT_EQ(server.calls(), 1) << "nothing was sent";
}

// The backward call of a TestRequest.
struct TestBackward : TestRequest {
  std::vector<float> o = std::vector<float>(3 * 4 * 8, 2.0f);
  std::vector<float> d_o = std::vector<float>(3 * 4 * 8, 3.0f);
  std::vector<float> lse = std::vector<float>(3 * 4, 4.0f);

  AttendBackwardRequest backward() const {
    return {.forward = request,
            .o = {.shape = {3, 4, 8}, .data = o.data()},
            .lse = lse,
            .d_o = {.shape = {3, 4, 8}, .data = d_o.data()},
            .want_bias_gradient = !std::holds_alternative<std::monostate>(request.bias)};
  }
};

std::string BytesOf(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

FakeServer::BackwardHandler BackwardEchoHandler(v1::AttendBackwardRequest* received = nullptr) {
  return [received](int, grpc::ServerContext*, const v1::AttendBackwardRequest& request,
                    v1::AttendBackwardResponse* response) {
    if (received != nullptr) *received = request;
    return Echo(request, response);
  };
}

TEST(AttendBackwardTest, SendsWhatTheRequestSaysAndReturnsTheAnswer) {
  v1::AttendBackwardRequest received;
  FakeServer server(BackwardEchoHandler(&received));
  TestBackward test;
  test.request.want_lse = true;
  test.request.left_window = 7;
  test.request.bias = AlibiSlopes{.slopes = test.slopes};
  const auto gradients = Connect(server)->AttendBackward(test.backward());
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  EXPECT_FALSE(received.forward().want_lse()) << "a server refuses it";
  EXPECT_EQ(received.forward().left_window(), 7);
  EXPECT_EQ(received.forward().q().data(), BytesOf(test.q));
  EXPECT_EQ(received.forward().alibi().slopes().data(), BytesOf(test.slopes));
  EXPECT_TRUE(received.want_bias_gradient());
  EXPECT_EQ(received.o().data(), BytesOf(test.o));
  EXPECT_EQ(received.d_o().data(), BytesOf(test.d_o));
  EXPECT_EQ(received.lse().data(), BytesOf(test.lse));
  EXPECT_THAT(received.lse().shape(), testing::ElementsAre(3, 4));
  EXPECT_EQ(received.lse().dtype(), v1::DTYPE_FLOAT32);

  EXPECT_EQ(gradients->dtype, DType::kFloat32);
  EXPECT_EQ(gradients->dq, BytesOf(test.d_o));
  EXPECT_EQ(gradients->dk, BytesOf(test.k));
  EXPECT_EQ(gradients->dv, BytesOf(test.k));
  EXPECT_EQ(gradients->dslopes, test.slopes);
  EXPECT_TRUE(gradients->dphi_q.empty());
  EXPECT_EQ(gradients->timing.batch_requests, 3);
}

TEST(AttendBackwardTest, AnswersGoWhereTheCallerSays) {
  FakeServer server(BackwardEchoHandler());
  const auto client = Connect(server);
  TestBackward test;
  const std::vector<float> phi(5 * 3, 0.125f);
  test.request.bias = LowRankFactors{.phi_q = {.shape = {3, 1, 3}, .data = phi.data()},
                                     .phi_k = {.shape = {5, 1, 3}, .data = phi.data()}};
  std::string dq(384, '?'), dk(320, '?'), dv(320, '?');
  std::vector<float> dphi_q(9), dphi_k(15);
  CallOptions options;
  options.gradients = {.dq = absl::MakeSpan(dq),
                       .dk = absl::MakeSpan(dk),
                       .dv = absl::MakeSpan(dv),
                       .dphi_q = absl::MakeSpan(dphi_q),
                       .dphi_k = absl::MakeSpan(dphi_k)};
  const auto gradients = client->AttendBackward(test.backward(), options);
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  EXPECT_EQ(dq, BytesOf(test.d_o));
  EXPECT_EQ(dk, BytesOf(test.k));
  EXPECT_EQ(dv, BytesOf(test.k));
  EXPECT_EQ(dphi_q, std::vector<float>(9, 0.125f));
  EXPECT_EQ(dphi_k, phi);
  EXPECT_TRUE(gradients->dq.empty() && gradients->dk.empty() && gradients->dv.empty());
  EXPECT_TRUE(gradients->dphi_q.empty() && gradients->dphi_k.empty());

  options.gradients.dk = absl::MakeSpan(dk).subspan(1);
  absl::Status status = client->AttendBackward(test.backward(), options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("gradients.dk has 319 bytes"));
  status = client->Attend(test.request, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("gradients has buffers"));
  options = {.result = {.o = absl::MakeSpan(dq)}};
  status = client->AttendBackward(test.backward(), options).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("result has buffers"));
  AttendBackwardRequest no_lse = test.backward();
  no_lse.lse = {};
  status = client->AttendBackward(no_lse).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("lse has 0 values; accepted: 12"));
  EXPECT_EQ(server.calls(), 1) << "nothing was sent";
}

TEST(AttendBackwardTest, OnlyUnavailableIsTriedAgain) {
  FakeServer server([](int call, grpc::ServerContext*, const v1::AttendBackwardRequest& request,
                       v1::AttendBackwardResponse* response) {
    if (call < 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not yet");
    if (call == 3) return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
    return Echo(request, response);
  });
  const auto client = Connect(server);
  TestBackward test;
  EXPECT_TRUE(client->AttendBackward(test.backward()).ok());
  EXPECT_EQ(server.calls(), 3);
  EXPECT_EQ(client->AttendBackward(test.backward()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(server.calls(), 4);
}

TEST(AttendBackwardTest, ACancelledCallEnds) {
  absl::Notification reached;
  FakeServer server([&](int, grpc::ServerContext* context, const v1::AttendBackwardRequest&,
                        v1::AttendBackwardResponse*) {
    reached.Notify();
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(2));
    return grpc::Status::CANCELLED;
  });
  const auto client = Connect(server);
  TestBackward test;
  CallOptions options{.cancellation = std::make_shared<Cancellation>()};
  std::thread cancels([&] {
    reached.WaitForNotification();
    options.cancellation->Cancel();
  });
  EXPECT_EQ(client->AttendBackward(test.backward(), options).status().code(),
            absl::StatusCode::kCancelled);
  cancels.join();
}

TEST(AttendBackwardTest, AnswersThatDoNotFitTheRequestAreInternal) {
  using Fault = void (*)(v1::AttendBackwardResponse*);
  const Fault faults[] = {
      [](v1::AttendBackwardResponse* r) { r->Clear(); },
      [](v1::AttendBackwardResponse* r) { r->clear_dq(); },
      [](v1::AttendBackwardResponse* r) { r->mutable_dk()->set_dtype(v1::DTYPE_FLOAT16); },
      [](v1::AttendBackwardResponse* r) { r->mutable_dv()->set_shape(0, 2); },
      [](v1::AttendBackwardResponse* r) { r->mutable_dv()->mutable_data()->pop_back(); },
      [](v1::AttendBackwardResponse* r) { r->mutable_dq()->set_region_id(3); },
      [](v1::AttendBackwardResponse* r) { r->clear_dslopes(); },
      [](v1::AttendBackwardResponse* r) { r->mutable_dslopes()->set_shape(0, 3); },
      [](v1::AttendBackwardResponse* r) { r->mutable_dslopes()->mutable_data()->resize(15); }};
  FakeServer server([&](int call, grpc::ServerContext*, const v1::AttendBackwardRequest& request,
                        v1::AttendBackwardResponse* response) {
    Echo(request, response);
    faults[call](response);
    return grpc::Status::OK;
  });
  const auto client = Connect(server);
  TestBackward test;
  test.request.bias = AlibiSlopes{.slopes = test.slopes};
  std::string dq(384, '?');
  CallOptions options;
  options.gradients.dq = absl::MakeSpan(dq);
  for (size_t n = 0; n < std::size(faults); ++n) {
    const auto gradients = client->AttendBackward(test.backward(), options);
    EXPECT_EQ(gradients.status().code(), absl::StatusCode::kInternal) << n;
    EXPECT_THAT(std::string(gradients.status().message()), HasSubstr("the server answered")) << n;
    EXPECT_EQ(dq, std::string(384, '?')) << n;
  }
}

// A request that no socket buffer holds, for a server that reads nothing.
class StalledServerTest : public testing::Test {
 protected:
  StalledServerTest() {
    auto client =
        AttentionClient::Create({.target = server_.target(), .retry = {.max_attempts = 1}});
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  StalledServer server_;
  std::vector<float> tensor_ = std::vector<float>(16 << 20, 0.5f);
  const std::vector<int64_t> shape_ = {1 << 14, 8, 128};
  const AttendRequest request_ = {.q = {.shape = shape_, .data = tensor_.data()},
                                  .k = {.shape = shape_, .data = tensor_.data()},
                                  .v = {.shape = shape_, .data = tensor_.data()},
                                  .mask = MaskKind::kCausal};
  std::unique_ptr<AttentionClient> client_;
};

TEST_F(StalledServerTest, ACallEndsOnlyWhenItsMemoryIsFree) {
  absl::Notification ended;
  absl::Status status;
  client_->AttendAsync(request_, {.timeout = absl::Milliseconds(200)},
                       [&](absl::StatusOr<AttendResult> result) {
                         status = result.status();
                         ended.Notify();
                       });
  EXPECT_FALSE(ended.WaitForNotificationWithTimeout(absl::Seconds(1)))
      << "the socket still has the caller's memory to send: " << status;
  server_.Stop();
  ASSERT_TRUE(ended.WaitForNotificationWithTimeout(absl::Seconds(20)));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
}

TEST(AttentionClientTest, GetServerInfo) {
  FakeServer server(EchoHandler());
  v1::GetServerInfoResponse* info = server.info();
  info->set_version("1.2.3");
  info->set_backend("cpu");
  info->add_devices("AVX2");
  info->add_dtypes(v1::DTYPE_BFLOAT16);
  info->add_dtypes(static_cast<v1::DType>(99));
  info->set_max_head_dim(128);
  info->add_fast_head_dims(64);
  info->set_max_rank(64);
  info->set_max_message_bytes(1000);
  info->set_max_queue_requests(10);
  info->set_max_queue_bytes(2000);
  info->set_default_eps(0x1p-24);
  info->set_max_eps(0x1p-8);
  info->set_max_stream_bytes(3000);
  const auto result = Connect(server)->GetServerInfo();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->version, "1.2.3");
  EXPECT_EQ(result->backend, "cpu");
  EXPECT_THAT(result->devices, testing::ElementsAre("AVX2"));
  EXPECT_THAT(result->dtypes, testing::ElementsAre(DType::kBFloat16));
  EXPECT_EQ(result->max_head_dim, 128);
  EXPECT_THAT(result->fast_head_dims, testing::ElementsAre(64));
  EXPECT_EQ(result->max_rank, 64);
  EXPECT_EQ(result->max_message_bytes, 1000);
  EXPECT_EQ(result->max_queue_requests, 10);
  EXPECT_EQ(result->max_queue_bytes, 2000);
  EXPECT_EQ(result->default_eps, 0x1p-24);
  EXPECT_EQ(result->max_eps, 0x1p-8);
  EXPECT_EQ(result->max_stream_bytes, 3000);
}

}  // namespace
}  // namespace flashbias::client
