#include "tests/support/run_backend.h"

#include <utility>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace flashbias::support {

absl::StatusOr<std::vector<ProblemStats>> RunAndWait(AttentionBackend& backend,
                                                     absl::Span<const AttentionProblem> problems) {
  std::vector<ProblemStats> stats(problems.size());
  absl::Status status;
  absl::Notification finished;
  backend.Run(problems, absl::MakeSpan(stats), [&](absl::Status result) {
    status = std::move(result);
    finished.Notify();
  });
  finished.WaitForNotification();
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
