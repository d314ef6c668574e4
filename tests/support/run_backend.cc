#include "tests/support/run_backend.h"

#include <utility>

#include "absl/synchronization/mutex.h"
#include "gtest/gtest.h"

namespace flashbias::support {

absl::StatusOr<std::vector<ProblemStats>> RunAndWait(AttentionBackend& backend,
                                                     absl::Span<const AttentionProblem> problems) {
  std::vector<ProblemStats> stats(problems.size());
  absl::Status status;
  // No absl::Notification: ThreadSanitizer does not see the order that the packaged one makes.
  absl::Mutex mutex;
  bool finished = false;
  backend.Run(problems, absl::MakeSpan(stats), [&](absl::Status result) {
    absl::MutexLock lock(&mutex);
    status = std::move(result);
    finished = true;
  });
  absl::MutexLock lock(&mutex);
  mutex.Await(absl::Condition(&finished));
  if (!status.ok()) return status;
  return stats;
}

absl::StatusOr<ProblemStats> RunAndWait(AttentionBackend& backend, OwnedProblem& owned) {
  owned.PoisonOutputs();
  absl::StatusOr<std::vector<ProblemStats>> stats =
      RunAndWait(backend, absl::MakeConstSpan(&owned.problem(), 1));
  if (!stats.ok()) return stats.status();
  return stats->front();
}

std::string OutputBytesOf(AttentionBackend& backend, const AttentionCase& test_case) {
  OwnedProblem owned = Materialise(test_case);
  const absl::StatusOr<ProblemStats> stats = RunAndWait(backend, owned);
  EXPECT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(owned.CheckOutputs(), "");
  return owned.OutputBytes();
}

}  // namespace flashbias::support
