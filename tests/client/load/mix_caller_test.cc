#include "client/load/requests/mix_caller.h"

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/fake_server.h"
#include "tests/client/load/drive_caller.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

WorkloadOptions Small(LoadDirection direction = LoadDirection::kForward) {
  return {.direction = direction,
          .heads = 2,
          .head_dim = 8,
          .seq_len = 16,
          .dtype = DType::kFloat32,
          .want_lse = true,
          .num_inputs = 2};
}

std::unique_ptr<RequestMix> MixOf(std::vector<MixEntryOptions> entries) {
  auto mix = RequestMix::Create({.entries = std::move(entries)});
  EXPECT_TRUE(mix.ok()) << mix.status();
  return *std::move(mix);
}

MixCallerOptions CallerOptions(const std::vector<std::string>& targets, double verify_share) {
  MixCallerOptions options{.slots = 3, .verify_share = verify_share};
  for (const std::string& target : targets) {
    options.clients.push_back({.target = target, .retry = {.max_attempts = 1}});
  }
  return options;
}

std::unique_ptr<MixCaller> CallerOf(const MixCallerOptions& options, const RequestMix& mix,
                                    const Verifier* verifier) {
  auto caller = MixCaller::Create(options, &mix, verifier);
  EXPECT_TRUE(caller.ok()) << caller.status();
  return *std::move(caller);
}

grpc::Status AnswerTruly(int /*call*/, grpc::ServerContext* /*context*/,
                         const v1::AttendRequest& request, v1::AttendResponse* response) {
  return TrueAnswer(request, response);
}
grpc::Status AnswerBackwardTruly(int /*call*/, grpc::ServerContext* /*context*/,
                                 const v1::AttendBackwardRequest& request,
                                 v1::AttendBackwardResponse* response) {
  return TrueGradients(request, response);
}

// Enough rows to meet every one of 16 x 2.
constexpr int kAllRows = 400;

TEST(MixCallerTest, AnswersAreCountedAndVerified) {
  FakeServer server(AnswerTruly);
  server.info()->set_version("9.8.7");
  const auto mix =
      MixOf({{.workload = Small()},
             {.workload = Small(),
              .seq_len = {.kind = LengthDistribution::Kind::kUniform, .min = 1, .max = 40},
              .q_len = {.kind = LengthDistribution::Kind::kChoice, .values = {1, 9}}}});
  const Verifier verifier(mix.get(), 32, 8, 1);
  const auto caller = CallerOf(CallerOptions({server.target()}, 1), *mix, &verifier);
  EXPECT_EQ(caller->num_entries(), 2);
  EXPECT_EQ(caller->num_targets(), 1);
  ASSERT_EQ(caller->servers().size(), 1u);
  EXPECT_EQ(caller->servers()[0].version, "9.8.7");
  const std::vector<CallOutcome> outcomes = DriveCaller(*caller, 40, 3);
  EXPECT_EQ(server.calls(), 40);
  std::set<int> entries;
  for (int64_t n = 0; n < 40; ++n) {
    const CallOutcome& outcome = outcomes[n];
    const PlannedRequest plan = mix->At(n);
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.entry, plan.entry);
    EXPECT_EQ(outcome.target, 0);
    // q and o, k and v, slopes, lse.
    EXPECT_EQ(outcome.bytes, 4 * (2 * plan.q_len * 16 + 2 * plan.kv_len * 16 + 2 + plan.q_len * 2));
    EXPECT_EQ(outcome.tokens, plan.q_len);
    EXPECT_EQ(outcome.stages.calls, 1);
    EXPECT_EQ(outcome.stages.compute, absl::Milliseconds(250));
    EXPECT_EQ(outcome.stages.tiles_computed, 7);
    ASSERT_TRUE(outcome.sample.has_value());
    EXPECT_EQ(outcome.sample->request.kv_len, plan.kv_len);
    entries.insert(outcome.entry);
  }
  EXPECT_EQ(entries.size(), 2u);
  const VerifyReport report = verifier.Verify(SamplesOf(outcomes));
  EXPECT_EQ(report.answers, 40);
  EXPECT_EQ(report.rows, 40 * 8);
  EXPECT_EQ(report.wrong, 0) << report.max_o_error;
}

TEST(MixCallerTest, OneCorruptedElementIsFound) {
  const auto mix = MixOf({{.workload = Small()}});
  const Verifier verifier(mix.get(), kAllRows, kAllRows, 1);
  for (const int64_t element : {0, 100, 255}) {
    FakeServer server([element](int call, grpc::ServerContext*, const v1::AttendRequest& request,
                                v1::AttendResponse* response) {
      const grpc::Status status = TrueAnswer(request, response);
      char* const o = response->mutable_o()->mutable_data()->data();
      if (call == 17) {
        StoreElement(DType::kFloat32, o, element, LoadElement(DType::kFloat32, o, element) + 0.01f);
      }
      return status;
    });
    const auto caller = CallerOf(CallerOptions({server.target()}, 1), *mix, &verifier);
    const VerifyReport report = verifier.Verify(SamplesOf(DriveCaller(*caller, 30, 3)));
    EXPECT_EQ(report.answers, 30);
    EXPECT_EQ(report.wrong, 1);
    EXPECT_GT(report.max_o_error, report.limit);
  }
}

TEST(MixCallerTest, TwoTargetsGetHalfEach) {
  FakeServer first(AnswerTruly);
  FakeServer second([](int, grpc::ServerContext*, const v1::AttendRequest&, v1::AttendResponse*) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  });
  const auto mix = MixOf({{.workload = Small()}});
  const Verifier verifier(mix.get(), 32, 8, 1);
  const auto caller =
      CallerOf(CallerOptions({first.target(), second.target()}, 1), *mix, &verifier);
  EXPECT_EQ(caller->num_targets(), 2);
  const std::vector<CallOutcome> outcomes = DriveCaller(*caller, 40, 3);
  EXPECT_EQ(first.calls(), 20);
  EXPECT_EQ(second.calls(), 20);
  for (int n = 0; n < 40; ++n) {
    EXPECT_EQ(outcomes[n].target, n % 2);
    if (n % 2 == 0) {
      EXPECT_TRUE(outcomes[n].status.ok()) << outcomes[n].status;
      continue;
    }
    EXPECT_EQ(outcomes[n].status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(outcomes[n].status.message(), absl::StrCat(second.target(), ": full"));
    EXPECT_EQ(outcomes[n].bytes, 0);
    EXPECT_EQ(outcomes[n].tokens, 0);
    EXPECT_FALSE(outcomes[n].sample.has_value());
  }
}

TEST(MixCallerTest, BackwardCallsTakeAnswersMadeBefore) {
  std::atomic<int> forward = 0;
  const FakeServer::Handler count_forward = [&](int call, grpc::ServerContext* context,
                                                const v1::AttendRequest& request,
                                                v1::AttendResponse* response) {
    ++forward;
    EXPECT_TRUE(request.want_lse());
    return AnswerTruly(call, context, request, response);
  };
  const FakeServer::BackwardHandler check_backward = [](int call, grpc::ServerContext* context,
                                                        const v1::AttendBackwardRequest& request,
                                                        v1::AttendBackwardResponse* response) {
    v1::AttendRequest forward_call = request.forward();
    forward_call.set_want_lse(true);
    v1::AttendResponse of;
    TrueAnswer(forward_call, &of);
    EXPECT_EQ(request.o().data(), of.o().data());
    EXPECT_EQ(request.lse().data(), of.lse().data());
    return AnswerBackwardTruly(call, context, request, response);
  };
  FakeServer one(count_forward, check_backward);
  FakeServer two(count_forward, check_backward);
  const auto mix =
      MixOf({{.workload = Small(LoadDirection::kBackward),
              .seq_len = {.kind = LengthDistribution::Kind::kUniform, .min = 3, .max = 12}}});
  const auto prepared = static_cast<int>(mix->forward_calls(0).size());
  EXPECT_EQ(prepared, 20) << "ten lengths, two inputs";
  const Verifier verifier(mix.get(), 32, 16, 1);
  const auto caller = CallerOf(CallerOptions({one.target(), two.target()}, 1), *mix, &verifier);
  EXPECT_EQ(forward, prepared);
  const std::vector<CallOutcome> outcomes = DriveCaller(*caller, 30, 3);
  EXPECT_EQ(forward, prepared);
  EXPECT_EQ(one.calls() + two.calls(), prepared + 30);
  for (int n = 0; n < 30; ++n) {
    EXPECT_TRUE(outcomes[n].status.ok()) << outcomes[n].status;
    const PlannedRequest plan = mix->At(n);
    const Workload::CallBytes bytes = mix->workload(0).bytes(plan.q_len, plan.kv_len);
    EXPECT_EQ(outcomes[n].bytes, bytes.request + bytes.response);
    EXPECT_EQ(outcomes[n].stages.calls, 1);
    EXPECT_TRUE(outcomes[n].sample->rows.empty());
  }
  const VerifyReport report = verifier.Verify(SamplesOf(outcomes));
  EXPECT_EQ(report.answers, 30);
  EXPECT_EQ(report.rows, 30 * 3 * 16);
  EXPECT_EQ(report.wrong, 0) << report.max_gradient_error;
  EXPECT_GT(report.max_gradient_error, 0);
}

TEST(MixCallerTest, BothCallsAreOneRequest) {
  std::atomic<int> backward = 0;
  FakeServer server(AnswerTruly, [&](int call, grpc::ServerContext* context,
                                     const v1::AttendBackwardRequest& request,
                                     v1::AttendBackwardResponse* response) {
    const int number = backward++;
    if (number == 5) return grpc::Status(grpc::StatusCode::INTERNAL, "broken");
    const grpc::Status status = AnswerBackwardTruly(call, context, request, response);
    char* const dk = response->mutable_dk()->mutable_data()->data();
    if (number == 9) StoreElement(DType::kFloat32, dk, 0, LoadElement(DType::kFloat32, dk, 0) + 1);
    return status;
  });
  WorkloadOptions shape = Small(LoadDirection::kBoth);
  shape.heads = 1;
  const auto mix = MixOf({{.workload = shape}});
  const Verifier verifier(mix.get(), kAllRows, kAllRows, 1);
  const auto caller = CallerOf(CallerOptions({server.target()}, 1), *mix, &verifier);
  const std::vector<CallOutcome> outcomes = DriveCaller(*caller, 20, 3);
  EXPECT_EQ(server.calls(), 40);
  int failed = 0;
  for (const CallOutcome& outcome : outcomes) {
    if (!outcome.status.ok()) {
      ++failed;
      EXPECT_EQ(outcome.status.message(), "broken");
      continue;
    }
    EXPECT_EQ(outcome.stages.calls, 2);
    EXPECT_EQ(outcome.stages.batch_requests, 6);
    EXPECT_EQ(outcome.tokens, 16);
  }
  EXPECT_EQ(failed, 1);
  const VerifyReport report = verifier.Verify(SamplesOf(outcomes));
  EXPECT_EQ(report.answers, 19);
  EXPECT_EQ(report.wrong, 1);
  EXPECT_GT(report.max_gradient_error, report.gradient_limit);
  EXPECT_LE(report.max_o_error, report.limit);
}

TEST(MixCallerTest, SamplesAreSpreadOverRequestsAndTargets) {
  const FakeServer::Handler echo = [](int, grpc::ServerContext*, const v1::AttendRequest& request,
                                      v1::AttendResponse* response) {
    return Echo(request, response);
  };
  FakeServer one(echo);
  FakeServer two(echo);
  const auto mix = MixOf({{.workload = Small()}});
  const Verifier verifier(mix.get(), 8, 2, 1);
  for (const uint64_t seed : {1, 2, 3}) {
    MixCallerOptions options = CallerOptions({one.target(), two.target()}, 0.1);
    options.seed = seed;
    const auto caller = CallerOf(options, *mix, &verifier);
    const std::vector<CallOutcome> outcomes = DriveCaller(*caller, 600, 3);
    std::vector<int> sampled(2);
    int since = 0;
    for (const CallOutcome& outcome : outcomes) {
      since = outcome.sample.has_value() ? 0 : since + 1;
      EXPECT_LT(since, 21);
      sampled[outcome.target] += outcome.sample.has_value() ? 1 : 0;
    }
    EXPECT_TRUE(outcomes[0].sample.has_value());
    EXPECT_NEAR(sampled[0], 30, 4);
    EXPECT_NEAR(sampled[1], 30, 4);
    EXPECT_GT(verifier.Verify(SamplesOf(outcomes)).wrong, 50) << "an echo is no attention";
  }
}

TEST(MixCallerTest, ACallEndsAtItsTimeout) {
  FakeServer server(
      [](int, grpc::ServerContext* context, const v1::AttendRequest&, v1::AttendResponse*) {
        while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
        return grpc::Status::CANCELLED;
      });
  const auto mix = MixOf({{.workload = Small()}});
  MixCallerOptions options = CallerOptions({server.target()}, 0);
  options.timeout = absl::Milliseconds(100);
  // Asking what the server is takes a connection, which a busy machine makes late.
  absl::StatusOr<std::unique_ptr<MixCaller>> caller;
  for (int n = 0; n < 50 && !caller.ok(); ++n)
    caller = MixCaller::Create(options, mix.get(), nullptr);
  ASSERT_TRUE(caller.ok()) << caller.status();
  const std::vector<CallOutcome> outcomes = DriveCaller(**caller, 2, 2);
  EXPECT_EQ(outcomes[0].status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(outcomes[1].status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(MixCallerTest, TheDestructorWaitsForCallsInFlight) {
  absl::Notification may_answer;
  FakeServer server([&](int, grpc::ServerContext*, const v1::AttendRequest& request,
                        v1::AttendResponse* response) {
    may_answer.WaitForNotification();
    return TrueAnswer(request, response);
  });
  const auto mix = MixOf({{.workload = Small()}});
  auto caller = CallerOf(CallerOptions({server.target()}, 0), *mix, nullptr);
  absl::Status status = absl::UnknownError("no answer");
  caller->Start(0, 0, [&](CallOutcome outcome) { status = outcome.status; });
  std::thread answer([&] {
    absl::SleepFor(absl::Milliseconds(100));
    may_answer.Notify();
  });
  caller.reset();
  EXPECT_TRUE(status.ok()) << status;
  answer.join();
}

TEST(MixCallerTest, ErrorsOfCreateNameTheTargetOrTheFlag) {
  FakeServer server(AnswerTruly);
  const auto mix = MixOf({{.workload = Small()}});
  const Verifier verifier(mix.get(), 8, 2, 1);
  const auto error = [&](const MixCallerOptions& options, const RequestMix& of) {
    return MixCaller::Create(options, &of, &verifier).status();
  };
  MixCallerOptions options = CallerOptions({server.target(), "unix:/nonexistent"}, 0);
  EXPECT_EQ(error(options, *mix).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(error(options, *mix).message()), StartsWith("unix:/nonexistent: "));

  options = CallerOptions({server.target()}, 0);
  options.transport = LoadTransport::kSharedMemory;
  EXPECT_EQ(error(options, *mix).message(),
            absl::StrCat("--target is '", server.target(),
                         "'; accepted with --transport=shared_memory: unix:PATH"));
  EXPECT_EQ(error(CallerOptions({}, 0), *mix).message(),
            "--target is empty; accepted: at least one server");
  EXPECT_EQ(error(CallerOptions({server.target()}, 1.5), *mix).message(),
            "--verify is 1.5; accepted: 0 to 1");
  EXPECT_EQ(
      MixCaller::Create(CallerOptions({server.target()}, 1), mix.get(), nullptr).status().message(),
      "--verify is 1 without a verifier; accepted: 0");
  options = CallerOptions({server.target()}, 0);
  options.timeout = absl::ZeroDuration();
  EXPECT_EQ(error(options, *mix).message(), "--timeout is 0; accepted: positive durations");
  options = CallerOptions({server.target()}, 0);
  options.clients[0].num_connections = 0;
  EXPECT_THAT(std::string(error(options, *mix).message()),
              StartsWith(absl::StrCat(server.target(), ": num_connections is 0")));

  FakeServer refusing([](int, grpc::ServerContext*, const v1::AttendRequest&, v1::AttendResponse*) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "not now");
  });
  const auto backward = MixOf({{.workload = Small(LoadDirection::kBackward)}});
  const absl::Status refused = error(CallerOptions({refusing.target()}, 0), *backward);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refused.message(), absl::StrCat(refusing.target(), ": not now"));
}

TEST(MixCallerTest, ASlotThatIsNoneIsAnError) {
  FakeServer server(AnswerTruly);
  const auto mix = MixOf({{.workload = Small()}});
  const auto caller = CallerOf(CallerOptions({server.target()}, 0), *mix, nullptr);
  absl::Status status;
  caller->Start(0, 3, [&](CallOutcome outcome) { status = outcome.status; });
  EXPECT_EQ(status.message(), "slot is 3; accepted: 0 to 2");
}

}  // namespace
}  // namespace flashbias::client
