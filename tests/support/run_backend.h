// Runs a backend and waits for it.
//
// Thread-safety: as the backend's.
#ifndef FLASHBIAS_TESTS_SUPPORT_RUN_BACKEND_H_
#define FLASHBIAS_TESTS_SUPPORT_RUN_BACKEND_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/attention_backend.h"
#include "tests/support/attention_case.h"
#include "tests/support/owned_problem.h"

namespace flashbias::support {

// All problems in one call of Run.
absl::StatusOr<std::vector<ProblemStats>> RunAndWait(AttentionBackend& backend,
                                                     absl::Span<const AttentionProblem> problems);

// One problem, its outputs poisoned first.
absl::StatusOr<ProblemStats> RunAndWait(AttentionBackend& backend, OwnedProblem& owned);

// The output bytes of the case run alone; an error or a damaged guard fails the test.
std::string OutputBytesOf(AttentionBackend& backend, const AttentionCase& test_case);

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_RUN_BACKEND_H_
