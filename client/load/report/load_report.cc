#include "client/load/report/load_report.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace flashbias::client {
namespace {

absl::Status WrongAnswers(const RunReport& run) {
  if (!run.verify.has_value() || run.verify->wrong == 0) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(run.verify->wrong, " of ", run.verify->answers, " verified answers are wrong"));
}

absl::Status FailedRequests(const RunReport& run) {
  if (run.result.failed == 0) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat(run.result.failed, " of ",
                                         run.result.failed + run.result.succeeded,
                                         " requests failed (--allow_errors accepts that)"));
}

absl::Status JudgeRun(const RunReport& run, bool allow_errors) {
  if (absl::Status wrong = WrongAnswers(run); !wrong.ok()) return wrong;
  if (run.result.succeeded == 0) return absl::UnavailableError("no request succeeded");
  if (run.verify.has_value() && run.verify->answers == 0) {
    return absl::FailedPreconditionError("no answer was verified: the share is too small");
  }
  if (absl::Status failed = FailedRequests(run); !failed.ok() && !allow_errors) return failed;
  if (!run.verdict.valid()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the run is invalid: ", absl::StrJoin(run.verdict.reasons, "; ")));
  }
  return absl::OkStatus();
}

// Steps beyond what the server sustains fail by design; those that met the objective must not.
absl::Status JudgeSweep(const SweepReport& sweep, bool allow_errors) {
  bool any_succeeded = false;
  bool verify_asked = false;
  int64_t verified = 0;
  const auto look_at = [&](const RunReport& run) {
    any_succeeded |= run.result.succeeded > 0;
    verify_asked |= run.verify.has_value();
    verified += run.verify.has_value() ? run.verify->answers : 0;
    return WrongAnswers(run);
  };
  for (const RunReport& step : sweep.steps) {
    if (absl::Status wrong = look_at(step); !wrong.ok()) return wrong;
  }
  if (sweep.overload.has_value()) {
    if (absl::Status wrong = look_at(*sweep.overload); !wrong.ok()) return wrong;
  }
  if (!any_succeeded) return absl::UnavailableError("no request succeeded");
  if (verify_asked && verified == 0) {
    return absl::FailedPreconditionError("no answer was verified: the share is too small");
  }
  if (!sweep.best_rate.has_value()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "no rate met the objective of a p99 latency of at most ", absl::FormatDuration(sweep.slo)));
  }
  for (size_t n = 0; n < sweep.steps.size() && n < sweep.met.size(); ++n) {
    if (!sweep.met[n] || allow_errors) continue;
    if (absl::Status failed = FailedRequests(sweep.steps[n]); !failed.ok()) return failed;
  }
  // Where no step failed (--max_rate ended the search) that is no contradiction.
  if (sweep.bound_rate.has_value() && sweep.overload.has_value() &&
      MeetsObjective(*sweep.overload, sweep.slo)) {
    return absl::FailedPreconditionError(
        "twice the best rate met the objective too: something other than the rate decided the "
        "steps that did not");
  }
  return absl::OkStatus();
}

}  // namespace

bool MeetsObjective(const RunReport& run, absl::Duration slo) {
  const LoadResult& result = run.result;
  if (result.succeeded == 0 || !run.verdict.valid()) return false;
  // Failures are beyond any bound: the 99th of all that were offered is a later one of those that
  // succeeded.
  const double percent =
      99.0 * static_cast<double>(std::max(result.offered, result.succeeded + result.failed)) /
      static_cast<double>(result.succeeded);
  return percent <= 100.0 && result.latency.Percentile(percent) <= slo;
}

absl::Status Judge(const LoadReport& report, bool allow_errors) {
  if (report.sweep.has_value()) return JudgeSweep(*report.sweep, allow_errors);
  if (report.run.has_value()) return JudgeRun(*report.run, allow_errors);
  return absl::UnavailableError("no request succeeded");
}

}  // namespace flashbias::client
