#include "server/scheduler_thread.h"

namespace flashbias::server {

SchedulerThread::SchedulerThread(Scheduler* scheduler, const Clock* clock)
    : scheduler_(scheduler), clock_(clock), thread_([this] { Loop(); }) {}

SchedulerThread::~SchedulerThread() {
  stop_.store(true, std::memory_order_release);
  scheduler_->Wake();
  thread_.join();
}

void SchedulerThread::Loop() {
  // A Wake that comes after the look at stop_ ends the AwaitChange that follows.
  for (;;) {
    const absl::Time again = scheduler_->Poll(clock_->Now());
    if (stop_.load(std::memory_order_acquire)) return;
    scheduler_->AwaitChange(again);
  }
}

}  // namespace flashbias::server
