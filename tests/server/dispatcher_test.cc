// Several devices: who gets the next batch, and what happens when one fails.
#include "server/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "tests/server/fake_clock.h"
#include "tests/server/puppet_backend.h"

namespace flashbias::server {
namespace {

using testing::ElementsAre;

class DispatcherTest : public testing::Test {
 protected:
  void Start(int devices, int slots) {
    std::vector<AttentionBackend*> pointers;
    for (int n = 0; n < devices; ++n) {
      backends_.push_back(std::make_unique<PuppetBackend>(slots));
      pointers.push_back(backends_.back().get());
    }
    dispatcher_ = std::make_unique<Dispatcher>(pointers, &clock_, &metrics_, [this] {
      ++none_left_;
      answered_when_none_left_ = answers_.size();
    });
  }
  ~DispatcherTest() override {
    for (const auto& backend : backends_) {
      while (backend->runs_in_flight() > 0) backend->EndRun();
    }
  }

  // A batch of one request with so many rows: work is rows * rows.
  void Run(int64_t rows, int device = kAnyDevice) {
    auto sequence = std::make_unique<Sequence>();
    sequence->q_len = sequence->kv_len = rows;
    AttentionProblem problem;
    problem.num_q_heads = problem.num_kv_heads = 1;
    problem.head_dim = 32;
    problem.total_q = problem.total_kv = rows;
    problem.sequences = absl::MakeConstSpan(sequence.get(), 1);
    problem.mask.causal = false;
    problem.device = device;
    sequences_.push_back(std::move(sequence));
    auto batch = std::make_unique<Batch>();
    batch->Add(std::make_unique<PendingRequest>(
        PendingRequest::Params{.problem = problem},
        [this](Outcome outcome) { answers_.push_back(std::move(outcome.status)); }));
    const Dispatcher::Claim claim = dispatcher_->ClaimSlot(*batch);
    dispatcher_->Run(claim, std::move(batch), [this] { ++freed_; });
  }

  // Runs in flight of each device.
  std::vector<size_t> InFlight() const {
    std::vector<size_t> runs;
    for (const auto& backend : backends_) runs.push_back(backend->runs_in_flight());
    return runs;
  }
  void Break(size_t device) {
    backends_[device]->set_health(absl::InternalError("broken"));
    backends_[device]->EndRun(absl::InternalError("broken"));
  }

  FakeClock clock_;
  Metrics metrics_{"test", "puppet"};
  int freed_ = 0;
  int none_left_ = 0;
  size_t answered_when_none_left_ = 99;
  std::vector<absl::Status> answers_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<std::unique_ptr<PuppetBackend>> backends_;
  std::unique_ptr<Dispatcher> dispatcher_;
};

TEST_F(DispatcherTest, AllDevicesAreUsedLeastLoadedFirst) {
  Start(3, 2);
  Run(100);
  EXPECT_THAT(InFlight(), ElementsAre(1, 0, 0));
  Run(50);
  EXPECT_THAT(InFlight(), ElementsAre(1, 1, 0));
  Run(10);
  EXPECT_THAT(InFlight(), ElementsAre(1, 1, 1));
  Run(10);
  EXPECT_THAT(InFlight(), ElementsAre(1, 1, 2)) << "two small ones are less than a large one";
  Run(1);
  EXPECT_THAT(InFlight(), ElementsAre(1, 2, 2)) << "the least loaded one has no slot";
  Run(1);
  EXPECT_THAT(InFlight(), ElementsAre(2, 2, 2));
  EXPECT_EQ(dispatcher_->state().free_slots, 0);
}

// The policy cuts a batch at once for an idle device, however busy the others are.
TEST_F(DispatcherTest, StateIsThatOfTheDeviceThatComesNext) {
  Start(2, 3);
  Run(5);
  EXPECT_EQ(dispatcher_->state().free_slots, 3);
  EXPECT_EQ(dispatcher_->state().slots, 3);
  Run(5);
  EXPECT_EQ(dispatcher_->state().free_slots, 2);
  backends_[0]->EndRun();
  EXPECT_EQ(dispatcher_->state().free_slots, 3);
  EXPECT_EQ(freed_, 1);
}

TEST_F(DispatcherTest, ABatchOfOneDevicesMemoryGoesThere) {
  Start(2, 3);
  Run(100, 1);
  EXPECT_THAT(InFlight(), ElementsAre(0, 1));
  Run(10, 1);
  EXPECT_THAT(InFlight(), ElementsAre(0, 2)) << "whatever its load";
  EXPECT_EQ(dispatcher_->state(0).free_slots, 3);
  EXPECT_EQ(dispatcher_->state(1).free_slots, 1);
  EXPECT_EQ(dispatcher_->state().free_slots, 3);
  backends_[1]->set_health(absl::InternalError("broken"));
  Run(10, 1);
  EXPECT_THAT(InFlight(), ElementsAre(0, 3)) << "and health: it must be answered";
}

TEST_F(DispatcherTest, OnlyTheDeviceThatMayRunItIsAskedToAdmit) {
  Start(2, 1);
  backends_[0]->set_admit(absl::ResourceExhaustedError("too large"));
  AttentionProblem problem;
  EXPECT_FALSE(dispatcher_->Admit(problem).ok());
  problem.device = 1;
  EXPECT_TRUE(dispatcher_->Admit(problem).ok());
  problem.device = 0;
  EXPECT_FALSE(dispatcher_->Admit(problem).ok());
}

TEST_F(DispatcherTest, ABrokenDeviceGetsNoMoreBatches) {
  Start(2, 2);
  Run(5);
  Run(5);
  Break(0);
  EXPECT_THAT(answers_, ElementsAre(absl::InternalError("the backend failed: broken")));
  EXPECT_EQ(none_left_, 0);
  EXPECT_TRUE(dispatcher_->any_healthy());
  Run(5);
  EXPECT_THAT(InFlight(), ElementsAre(0, 2));
  EXPECT_EQ(dispatcher_->state().free_slots, 0) << "the broken device's slots do not count";
}

// state() was asked before the device failed: the batch must still go somewhere.
TEST_F(DispatcherTest, ABatchOnItsWayToABrokenDeviceIsTaken) {
  Start(2, 1);
  Run(5);
  backends_[1]->set_health(absl::InternalError("broken"));
  Run(5);
  EXPECT_THAT(InFlight(), ElementsAre(1, 1));
}

TEST_F(DispatcherTest, TheLastDeviceToBreakIsReportedOnce) {
  Start(2, 2);
  for (int n = 0; n < 4; ++n) Run(5);
  Break(0);
  EXPECT_EQ(none_left_, 0);
  Break(1);
  EXPECT_EQ(none_left_, 1);
  EXPECT_EQ(answered_when_none_left_, 1) << "before the requests of the batch are answered";
  Break(0);
  Break(1);
  EXPECT_EQ(none_left_, 1);
  EXPECT_EQ(answers_.size(), 4);
  EXPECT_FALSE(dispatcher_->any_healthy());
  EXPECT_EQ(dispatcher_->state().free_slots, 2) << "what waits goes through and is answered";
  EXPECT_TRUE(dispatcher_->WaitUntilIdle(absl::InfinitePast()));
}

TEST_F(DispatcherTest, EveryHealthyDeviceMustAdmit) {
  Start(2, 1);
  EXPECT_TRUE(dispatcher_->Admit({}).ok());
  backends_[1]->set_admit(absl::ResourceExhaustedError("too large"));
  EXPECT_EQ(dispatcher_->Admit({}).code(), absl::StatusCode::kResourceExhausted);
  backends_[1]->set_health(absl::InternalError("broken"));
  EXPECT_TRUE(dispatcher_->Admit({}).ok());
}

TEST_F(DispatcherTest, AbandonAnswersTheRequestsOfAllDevices) {
  Start(2, 1);
  Run(5);
  Run(5);
  dispatcher_->Abandon(absl::UnavailableError("no patience"));
  EXPECT_THAT(answers_, ElementsAre(absl::UnavailableError("no patience"),
                                    absl::UnavailableError("no patience")));
  EXPECT_FALSE(dispatcher_->WaitUntilIdle(absl::InfinitePast()));
}

TEST_F(DispatcherTest, WhatTheBackendRefusesForWantOfMemoryIsToldAsThat) {
  Start(1, 1);
  Run(5);
  backends_[0]->EndRun(absl::ResourceExhaustedError("it takes 9 bytes"));
  EXPECT_THAT(answers_, ElementsAre(absl::ResourceExhaustedError("it takes 9 bytes")));
}

}  // namespace
}  // namespace flashbias::server
