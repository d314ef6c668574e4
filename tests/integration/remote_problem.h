// Sends an OwnedProblem through a client, so that the judges of tests/support serve the whole
// service too.
//
// Thread-safety: pure functions; one problem belongs to one thread at a time.
#ifndef FLASHBIAS_TESTS_INTEGRATION_REMOTE_PROBLEM_H_
#define FLASHBIAS_TESTS_INTEGRATION_REMOTE_PROBLEM_H_

#include "absl/status/statusor.h"
#include "client/attention_client.h"
#include "tests/support/owned_problem.h"

namespace flashbias::integration {

// The request that says what the problem says; views of the problem's memory.
client::AttendRequest RequestOf(const support::OwnedProblem& owned);

// Copies the answer into the problem's o and lse. INTERNAL where it is not of the asked-for shape.
absl::Status StoreResult(const client::AttendResult& result, support::OwnedProblem* owned);

// Both, with a call in between.
absl::StatusOr<client::AttendResult> AttendRemotely(client::AttentionClient& client,
                                                    support::OwnedProblem* owned,
                                                    const client::CallOptions& options = {});

// The same of a backward problem, and where its gradients are to be written.
client::AttendBackwardRequest BackwardRequestOf(const support::OwnedProblem& owned);
client::GradientBuffers GradientBuffersOf(const support::OwnedProblem& owned);

// Both, with a call in between; the answer is written over the problem's gradients.
absl::StatusOr<client::AttendGradients> AttendBackwardRemotely(client::AttentionClient& client,
                                                               support::OwnedProblem* owned);

}  // namespace flashbias::integration

#endif  // FLASHBIAS_TESTS_INTEGRATION_REMOTE_PROBLEM_H_
