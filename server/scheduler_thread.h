// The thread that drives a Scheduler in production.
//
// Thread-safety: made and destroyed by one thread. The scheduler must outlive it.
#ifndef FLASHBIAS_SERVER_SCHEDULER_THREAD_H_
#define FLASHBIAS_SERVER_SCHEDULER_THREAD_H_

#include <atomic>
#include <thread>

#include "server/clock.h"
#include "server/scheduler.h"

namespace flashbias::server {

class SchedulerThread {
 public:
  SchedulerThread(Scheduler* scheduler, const Clock* clock);
  SchedulerThread(const SchedulerThread&) = delete;
  SchedulerThread& operator=(const SchedulerThread&) = delete;
  // Stops and joins.
  ~SchedulerThread();

 private:
  void Loop();

  Scheduler* const scheduler_;
  const Clock* const clock_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_SCHEDULER_THREAD_H_
