// Callers that are killed in the middle of calls of every kind, and what they leave in the server's
// process: nothing.
#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/integration/call_kind.h"
#include "tests/integration/child_process.h"
#include "tests/integration/server_process.h"
#include "tests/support/compare.h"

namespace flashbias::integration {
namespace {

// Of each kind. All kinds are killed in every round, so that they share batches.
constexpr int kRounds = support::kSlowBuild ? 6 : 50;
constexpr int64_t kRows = support::kSlowBuild ? 256 : 4096;
constexpr absl::Duration kPatience = absl::Seconds(support::kSlowBuild ? 120 : 30);

struct Kind {
  std::string name;
  std::string argument;  // of killed_caller
  std::string target;
};

class KilledCallersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = ServerProcess::Start();
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    kinds_ = {{"inline over TCP", "inline", server_->tcp_target()},
              {"inline over a unix socket", "inline", server_->unix_target()},
              {"streamed", "stream", server_->tcp_target()},
              {"in shared memory", "shared", server_->unix_target()},
              {"gradients over TCP", "backward_inline", server_->tcp_target()},
              {"gradients streamed", "backward_stream", server_->tcp_target()},
              {"gradients in shared memory", "backward_shared", server_->unix_target()}};
  }

  // A caller of each kind, all of them calling; then each is killed at a moment of its own:
  // whenever in a call, or, where `with_the_answer`, the streamed one when the first part of an
  // answer large enough to be under way for a while has come.
  void KillAll(bool with_the_answer) {
    std::vector<std::optional<ChildProcess>> callers(kinds_.size());
    const auto dies_by_itself = [&](size_t n) {
      return with_the_answer && kinds_[n].argument == "stream";
    };
    for (size_t n = 0; n < kinds_.size(); ++n) {
      std::vector<std::string> arguments = {kinds_[n].argument, kinds_[n].target};
      if (dies_by_itself(n)) {
        arguments.insert(arguments.end(), {absl::StrCat(4 * kRows), "answer"});
      } else {
        arguments.push_back(absl::StrCat(kRows));
      }
      auto caller = ChildProcess::Start(ProgramPath("killed_caller"), arguments,
                                        server_->Path(absl::StrCat("caller.", n)));
      ASSERT_TRUE(caller.ok()) << caller.status();
      callers[n].emplace(*std::move(caller));
    }
    struct Kill {
      absl::Duration after;
      size_t caller;
      bool operator<(const Kill& other) const { return after < other.after; }
    };
    std::vector<Kill> kills;
    for (size_t n = 0; n < callers.size(); ++n) {
      if (dies_by_itself(n)) continue;
      const absl::Duration call = AwaitCalling(*callers[n]);
      ASSERT_GT(call, absl::ZeroDuration()) << kinds_[n].name << ": " << callers[n]->Output();
      // Calls follow each other without a pause: any moment is as good as any other.
      std::uniform_real_distribution<> share(0, 1);
      kills.push_back({.after = call * share(random_), .caller = n});
    }
    std::sort(kills.begin(), kills.end());
    const absl::Time start = absl::Now();
    for (const Kill& kill : kills) {
      absl::SleepFor(start + kill.after - absl::Now());
      ASSERT_TRUE(callers[kill.caller]->Running()) << callers[kill.caller]->Output();
      callers[kill.caller]->Signal(SIGKILL);
    }
    for (auto& caller : callers) {
      const absl::StatusOr<int> code = caller->Wait(kPatience);
      ASSERT_TRUE(code.ok()) << code.status();
      ASSERT_EQ(*code, 128 + SIGKILL) << caller->Output();
    }
  }

  // How long a call of it takes; zero: it has ended or says nothing.
  static absl::Duration AwaitCalling(ChildProcess& caller) {
    const absl::Time give_up = absl::Now() + kPatience;
    while (caller.Running() && absl::Now() < give_up) {
      const std::string output = caller.Output();
      absl::string_view line = output;
      int64_t microseconds = 0;
      if (absl::ConsumePrefix(&line, "calling ") && absl::ConsumeSuffix(&line, "\n") &&
          absl::SimpleAtoi(line, &microseconds)) {
        return absl::Microseconds(microseconds);
      }
      absl::SleepFor(absl::Milliseconds(1));
    }
    return absl::ZeroDuration();
  }

  double Metric(const std::string& name) const {
    absl::StatusOr<Samples> samples = server_->Metrics();
    EXPECT_TRUE(samples.ok()) << samples.status();
    if (!samples.ok() || !samples->contains(name)) {
      ADD_FAILURE() << "/metrics has no " << name;
      return 0;
    }
    return (*samples)[name];
  }
  double Cancelled(const std::string& where) const {
    return Metric(absl::StrCat("flashbias_cancelled_total{where=\"", where, "\"}"));
  }
  double CancelledCalls(const std::string& method, const std::string& transport) const {
    return Metric(absl::StrCat("flashbias_requests_total{code=\"CANCELLED\",method=\"", method,
                               "\",transport=\"", transport, "\"}"));
  }

  std::unique_ptr<ServerProcess> server_;
  std::vector<Kind> kinds_;
  std::mt19937 random_{20261125};  // the same moments every time, as far as machines go
};

TEST_F(KilledCallersTest, LeaveNothingAndTheNextCallsSucceed) {
  std::map<bool, std::string> expected;  // of attention, and of gradients
  int descriptors = 0;
  const absl::Time start = absl::Now();
  // The first round is not counted: after it the server has all that it keeps.
  for (int round = 0; round <= kRounds; ++round) {
    KillAll(round % 5 == 0);
    if (HasFatalFailure()) return;
    const absl::Status released = server_->AwaitNothingHeld(kPatience);
    ASSERT_TRUE(released.ok()) << released << " after round " << round;
    for (const Kind& kind : kinds_) {
      auto caller = KindOfCaller::Create(kind.argument, kind.target, kRows);
      ASSERT_TRUE(caller.ok()) << kind.name << ": " << caller.status();
      const absl::Status called = (*caller)->Call();
      ASSERT_TRUE(called.ok()) << kind.name << " after round " << round << ": " << called;
      std::string& answer = expected[absl::StartsWith(kind.argument, "backward_")];
      if (answer.empty()) answer = std::string((*caller)->answer());
      EXPECT_TRUE((*caller)->answer() == answer) << kind.name << " after round " << round;
    }
    const absl::Status idle = server_->AwaitNothingHeld(kPatience);
    ASSERT_TRUE(idle.ok()) << idle << " after round " << round;
    EXPECT_EQ(server_->MappedRegions(), 0);
    if (round == 0) descriptors = server_->OpenDescriptors();
  }
  // gRPC closes its side of dead connections a moment later.
  const absl::Time give_up = absl::Now() + kPatience;
  while (server_->OpenDescriptors() > descriptors && absl::Now() < give_up) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_LE(server_->OpenDescriptors(), descriptors);
  std::printf(
      "%zu kills in %.0f s; cancelled: %.0f receiving, %.0f queued, %.0f running, %.0f "
      "sending; calls of Attend %.0f over TCP, %.0f over the unix socket, of AttendStream "
      "%.0f, of AttendBackward %.0f and %.0f, of AttendBackwardStream %.0f; descriptors %d, then "
      "%d; resident MB %.0f\n",
      kinds_.size() * (kRounds + 1), absl::ToDoubleSeconds(absl::Now() - start),
      Cancelled("receiving"), Cancelled("queue"), Cancelled("running"), Cancelled("sending"),
      CancelledCalls("Attend", "tcp"), CancelledCalls("Attend", "unix"),
      CancelledCalls("AttendStream", "tcp"), CancelledCalls("AttendBackward", "tcp"),
      CancelledCalls("AttendBackward", "unix"), CancelledCalls("AttendBackwardStream", "tcp"),
      descriptors, server_->OpenDescriptors(),
      1e-6 * static_cast<double>(server_->ResidentBytes()));
  if (support::kSlowBuild) return;  // too few kills for what is likely
  // The moments were spread over all of a call.
  for (const char* where : {"receiving", "running", "sending"})
    EXPECT_GT(Cancelled(where), 0) << where;
  EXPECT_GT(CancelledCalls("Attend", "tcp"), 0);
  EXPECT_GT(CancelledCalls("Attend", "unix"), 0);
  EXPECT_GT(CancelledCalls("AttendStream", "tcp"), 0);
  EXPECT_GT(CancelledCalls("AttendBackward", "tcp"), 0);
  EXPECT_GT(CancelledCalls("AttendBackward", "unix"), 0);
  EXPECT_GT(CancelledCalls("AttendBackwardStream", "tcp"), 0);
}

}  // namespace
}  // namespace flashbias::integration
