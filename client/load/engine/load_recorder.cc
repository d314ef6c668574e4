#include "client/load/engine/load_recorder.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <string>
#include <utility>

namespace flashbias::client {
namespace {

constexpr size_t kShards = 8;
constexpr int64_t kNoEnd = std::numeric_limits<int64_t>::max();

void MergeGroups(const std::vector<GroupResult>& from, std::vector<GroupResult>* into) {
  for (size_t n = 0; n < from.size(); ++n) {
    (*into)[n].succeeded += from[n].succeeded;
    (*into)[n].failed += from[n].failed;
    (*into)[n].latency.Merge(from[n].latency);
  }
}

void MergeResults(LoadResult&& from, LoadResult* into) {
  into->succeeded += from.succeeded;
  into->failed += from.failed;
  into->overflowed += from.overflowed;
  into->latency.Merge(from.latency);
  into->service.Merge(from.service);
  into->lag.Merge(from.lag);
  for (auto& [code, status] : from.statuses) {
    StatusResult& total = into->statuses[code];
    if (total.count == 0) total.first_message = std::move(status.first_message);
    total.count += status.count;
    total.latency.Merge(status.latency);
  }
  MergeGroups(from.entries, &into->entries);
  MergeGroups(from.targets, &into->targets);
  into->stages.Add(from.stages);
  into->bytes += from.bytes;
  into->bytes_with_warmup += from.bytes_with_warmup;
  into->tokens += from.tokens;
  into->samples.insert(into->samples.end(), std::make_move_iterator(from.samples.begin()),
                       std::make_move_iterator(from.samples.end()));
}

int64_t CountAbove(const LatencyHistogram& histogram, absl::Duration limit) {
  int64_t above = 0;
  for (const LatencyHistogram::Bucket& bucket : histogram.Buckets()) {
    if (bucket.most > limit) above += bucket.count;
  }
  return above;
}

}  // namespace

LoadRecorder::LoadRecorder(int num_entries, int num_targets)
    : shards_(kShards), schedule_end_ns_(kNoEnd) {
  for (Shard& shard : shards_) {
    absl::MutexLock lock(&shard.mutex);
    shard.result.entries.resize(num_entries);
    shard.result.targets.resize(num_targets);
  }
}

void LoadRecorder::EndSchedule(absl::Duration end) {
  const int64_t wanted = absl::ToInt64Nanoseconds(end);
  int64_t known = schedule_end_ns_.load(std::memory_order_relaxed);
  while (wanted < known && !schedule_end_ns_.compare_exchange_weak(known, wanted)) {
  }
}

void LoadRecorder::RecordAnswer(const CallTimes& times, bool measured, CallOutcome outcome) {
  const absl::Duration schedule_end =
      absl::Nanoseconds(schedule_end_ns_.load(std::memory_order_relaxed));
  Shard& shard = OwnShard();
  absl::MutexLock lock(&shard.mutex);
  if (outcome.status.ok()) {
    ++shard.period.succeeded;
    shard.period.bytes += outcome.bytes;
    shard.period.latency.Record(times.answered - times.intended);
    shard.result.bytes_with_warmup += outcome.bytes;
    if (outcome.sample.has_value()) {
      shard.result.samples.push_back(*std::move(outcome.sample));
      outcome.sample.reset();
    }
  } else {
    ++shard.period.failed;
  }
  if (measured) RecordMeasured(times, schedule_end, std::move(outcome), &shard);
}

void LoadRecorder::RecordMeasured(const CallTimes& times, absl::Duration schedule_end,
                                  CallOutcome outcome, Shard* shard) {
  const bool ok = outcome.status.ok();
  const absl::Duration latency = times.answered - times.intended;
  LoadResult& result = shard->result;
  result.lag.Record(times.sent - times.intended);
  StatusResult& status = result.statuses[outcome.status.code()];
  if (status.count++ == 0) status.first_message = std::string(outcome.status.message());
  status.latency.Record(latency);
  for (GroupResult* group : {&result.entries[outcome.entry], &result.targets[outcome.target]}) {
    ++(ok ? group->succeeded : group->failed);
    if (ok) group->latency.Record(latency);
  }
  if (ok) {
    ++result.succeeded;
    result.latency.Record(latency);
    result.service.Record(times.answered - times.sent);
    result.stages.Add(outcome.stages);
    result.bytes += outcome.bytes;
    result.tokens += outcome.tokens;
    shard->intervals.RecordSuccess(times.intended, latency, outcome.bytes);
  } else {
    ++result.failed;
    shard->intervals.RecordFailure(times.intended);
  }
  if (times.answered > schedule_end) shard->late.Record(times.answered - schedule_end);
  shard->last_intended = std::max(shard->last_intended, times.intended);
  shard->last_answer = std::max(shard->last_answer, times.answered);
}

void LoadRecorder::RecordOverflow(absl::Duration intended, bool measured) {
  Shard& shard = OwnShard();
  absl::MutexLock lock(&shard.mutex);
  ++shard.period.failed;
  if (!measured) return;
  ++shard.result.failed;
  ++shard.result.overflowed;
  shard.intervals.RecordFailure(intended);
  shard.last_intended = std::max(shard.last_intended, intended);
}

LoadProgress LoadRecorder::TakeProgress() {
  Period all;
  for (Shard& shard : shards_) {
    Period period;
    {
      absl::MutexLock lock(&shard.mutex);
      std::swap(period, shard.period);
    }
    all.succeeded += period.succeeded;
    all.failed += period.failed;
    all.bytes += period.bytes;
    all.latency.Merge(period.latency);
  }
  const int64_t offered = offered_.load(std::memory_order_relaxed);
  return {.offered = offered - std::exchange(offered_before_, offered),
          .succeeded = all.succeeded,
          .failed = all.failed,
          .bytes = all.bytes,
          .p50 = all.latency.Percentile(50),
          .p99 = all.latency.Percentile(99)};
}

LoadResult LoadRecorder::Finish() {
  LoadResult result;
  IntervalSeries intervals;
  LatencyHistogram late;
  absl::Duration last_intended;
  for (Shard& shard : shards_) {
    absl::MutexLock lock(&shard.mutex);
    result.entries.resize(shard.result.entries.size());
    result.targets.resize(shard.result.targets.size());
    MergeResults(std::move(shard.result), &result);
    intervals.Merge(shard.intervals);
    late.Merge(shard.late);
    last_intended = std::max(last_intended, shard.last_intended);
    result.elapsed = std::max(result.elapsed, shard.last_answer);
  }
  result.offered = result.succeeded + result.failed;
  result.offering = result.elapsed;
  if (schedule_end_ns_.load(std::memory_order_relaxed) != kNoEnd) {
    const auto requests = static_cast<double>(result.offered);
    result.offering =
        result.offered > 1 ? last_intended * (requests / (requests - 1)) : last_intended;
  }
  result.intervals = intervals.Intervals(result.offering);
  result.thirds = intervals.Thirds(result.offering);
  const absl::Duration usual =
      result.thirds.empty() ? result.latency.Percentile(50) : result.thirds.front().p90;
  // Histograms round up, the coarse ones by up to 1/64.
  result.answered_in_time =
      result.offered - result.overflowed - CountAbove(late, usual * (65. / 64));
  return result;
}

LoadRecorder::Shard& LoadRecorder::OwnShard() {
  static std::atomic<size_t> threads{0};
  thread_local const size_t thread = threads.fetch_add(1, std::memory_order_relaxed);
  return shards_[thread % shards_.size()];
}

}  // namespace flashbias::client
