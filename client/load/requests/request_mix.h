// The requests of a load: which one the n-th is, and its tensors.
//
// A mix has entries, each a kind of request (workload.h) with a weight and lengths that are fixed,
// drawn from a distribution, or those of a recorded trace. Request n is a pure function of the
// options, so that a seed gives the same requests whatever the timing.
//
// Entries with backward calls draw from at most kBackwardLengths lengths, the middles of equally
// likely parts of their distribution: the forward calls that kBackward needs can be made before the
// load, and the references of gradients, each a whole head's, stay few.
//
// Thread-safety: const after Create, so any thread may read. Ownership: a mix owns the memory that
// its requests point at.
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_REQUEST_MIX_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_REQUEST_MIX_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/load/requests/answer_sample.h"
#include "client/load/requests/length_distribution.h"
#include "client/load/requests/workload.h"

namespace flashbias::client {

inline constexpr int kBackwardLengths = 32;
// Of the inputs of all entries together, and of the forward answers of all entries together.
inline constexpr int64_t kMaxMixInputBytes = int64_t{32} << 30;
inline constexpr int64_t kMaxForwardAnswerBytes = int64_t{4} << 30;

struct MixEntryOptions {
  std::string name = {};            // in reports; empty: described by its shape
  double weight = 1;                // above 0
  WorkloadOptions workload = {};    // its seq_len and q_len count where there is no distribution
  LengthDistribution seq_len = {};  // of the keys; fixed at 0: workload.seq_len
  // Of the queries; fixed at 0: workload.q_len. Where either length is drawn, queries beyond the
  // keys are cut off.
  LengthDistribution q_len = {};
  // What messages put before the name of a field: "--" of flags, "entries[2]." of a file.
  std::string field_prefix = "--";
};

// One request of a recorded trace.
struct TraceRow {
  absl::Duration arrival = {};  // from the first; 0 where the trace has no times
  int64_t seq_len = 0;
  int64_t q_len = 0;  // 0: the q_len of entry 0, at most seq_len
};

struct MixOptions {
  std::vector<MixEntryOptions> entries = {};  // at least one
  // Lengths in the order of the trace, from its start again when it ends; of entry 0, the only one.
  std::vector<TraceRow> trace = {};
  uint64_t seed = 1;  // also of every entry's inputs
};

class RequestMix {
 public:
  // INVALID_ARGUMENT: the message names the entry and its field, or the flag.
  static absl::StatusOr<std::unique_ptr<RequestMix>> Create(MixOptions options);

  int num_entries() const { return static_cast<int>(entries_.size()); }
  // REQUIRES: index >= 0.
  PlannedRequest At(int64_t index) const { return RequestOf(EntryAt(index), index); }
  // What request `index` would be if all were of one entry.
  PlannedRequest RequestOf(int entry, int64_t index) const;
  const Workload& workload(int entry) const { return *entries_[entry].workload; }
  // Of a kBackward entry: the forward calls to be made before the load. Empty of the others.
  const std::vector<PlannedRequest>& forward_calls(int entry) const {
    return entries_[entry].forward_calls;
  }
  const MixOptions& options() const { return options_; }
  double Share(int entry) const;          // of the requests
  std::string Name(int entry) const;      // that of the options, or its shape
  std::string Describe(int entry) const;  // one line for people

 private:
  struct Entry {
    double cumulative_weight = 0;  // this entry's and those before it
    LengthDistribution seq_len;
    LengthDistribution q_len;  // fixed at 0: as many as the keys
    bool drawn = false;        // whether either of them is
    // Where requests do not draw their lengths themselves: they take one of these at random, or, of
    // a trace, that of their row.
    std::vector<PlannedRequest> choices;
    std::vector<PlannedRequest> forward_calls;
    std::unique_ptr<Workload> workload;
  };

  explicit RequestMix(MixOptions options);

  static absl::Status ResolveLengths(const MixEntryOptions& options, Entry* entry);
  static int64_t QueryLength(const Entry& entry, int64_t kv_len, double quantile);
  static void ChooseBackwardLengths(Entry* entry);
  static void CollectForwardCalls(Entry* entry);
  void ChooseTraceLengths(Entry* entry) const;
  int EntryAt(int64_t index) const;
  absl::Status AddEntry(int index);
  absl::Status CheckInputs(const WorkloadOptions& workload, const std::string& prefix) const;
  absl::Status CheckForwardAnswers() const;

  const MixOptions options_;
  std::vector<Entry> entries_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_REQUEST_MIX_H_
