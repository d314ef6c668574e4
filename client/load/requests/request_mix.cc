#include "client/load/requests/request_mix.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/load/requests/counter_random.h"

namespace flashbias::client {
namespace {

enum RandomStream : uint64_t { kEntry, kInput, kKeys, kQueries, kInputSeed };

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

bool IsFixed(const LengthDistribution& lengths) {
  return lengths.kind == LengthDistribution::Kind::kFixed;
}

LengthDistribution Fixed(int64_t length) {
  return {.kind = LengthDistribution::Kind::kFixed, .min = length};
}

absl::Status CheckTraceRow(size_t index, const char* field, int64_t value, int64_t least,
                           int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Invalid("row ", index, " of the trace: ", field, " is ", value, "; accepted: ", least,
                 " to ", most);
}

absl::Status CheckTrace(const MixOptions& options) {
  if (!options.trace.empty() && options.entries.size() != 1) {
    return Invalid("a trace comes with a mix of ", options.entries.size(),
                   " entries; accepted: one");
  }
  for (size_t n = 0; n < options.trace.size(); ++n) {
    const TraceRow& row = options.trace[n];
    if (auto s = CheckTraceRow(n, "seq_len", row.seq_len, 1, kMaxLength); !s.ok()) return s;
    if (auto s = CheckTraceRow(n, "q_len", row.q_len, 0, row.seq_len); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

RequestMix::RequestMix(MixOptions options) : options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<RequestMix>> RequestMix::Create(MixOptions options) {
  if (options.entries.empty()) return Invalid("the mix has no entries; accepted: at least one");
  if (absl::Status status = CheckTrace(options); !status.ok()) return status;
  std::unique_ptr<RequestMix> mix(new RequestMix(std::move(options)));
  for (int n = 0; n < static_cast<int>(mix->options_.entries.size()); ++n) {
    if (absl::Status status = mix->AddEntry(n); !status.ok()) return status;
  }
  if (absl::Status status = mix->CheckForwardAnswers(); !status.ok()) return status;
  return mix;
}

absl::Status RequestMix::AddEntry(int index) {
  const MixEntryOptions& options = options_.entries[index];
  if (!(options.weight > 0 && std::isfinite(options.weight))) {
    return Invalid(options.field_prefix, "weight is ", options.weight,
                   "; accepted: positive numbers");
  }
  Entry entry;
  entry.cumulative_weight =
      options.weight + (entries_.empty() ? 0 : entries_.back().cumulative_weight);
  if (absl::Status status = ResolveLengths(options, &entry); !status.ok()) return status;

  WorkloadOptions workload = options.workload;
  workload.seed = RandomBits(options_.seed, RandomStream::kInputSeed, static_cast<uint64_t>(index));
  if (options_.trace.empty()) {
    workload.seq_len = entry.seq_len.Largest();
    workload.q_len = entry.q_len.Largest();
    if (entry.drawn) workload.q_len = std::min(workload.q_len, workload.seq_len);
  } else {
    ChooseTraceLengths(&entry);
    workload.seq_len = workload.q_len = 1;
    for (const PlannedRequest& row : entry.choices) {
      workload.seq_len = std::max(workload.seq_len, row.kv_len);
      workload.q_len = std::max(workload.q_len, row.q_len);
    }
  }
  if (auto s = CheckInputs(workload, options.field_prefix); !s.ok()) return s;
  auto made = Workload::Create(workload, options.field_prefix);
  if (!made.ok()) return made.status();
  entry.workload = *std::move(made);

  if (options_.trace.empty() && workload.direction != LoadDirection::kForward) {
    ChooseBackwardLengths(&entry);
  }
  for (size_t n = 0; n < entry.choices.size(); ++n) {
    entry.choices[n].entry = index;
    entry.choices[n].input = static_cast<int>(n % static_cast<size_t>(workload.num_inputs));
  }
  CollectForwardCalls(&entry);
  entries_.push_back(std::move(entry));
  return absl::OkStatus();
}

absl::Status RequestMix::ResolveLengths(const MixEntryOptions& options, Entry* entry) {
  const auto given = [](const LengthDistribution& lengths) {
    return !IsFixed(lengths) || lengths.min != 0;
  };
  entry->seq_len = given(options.seq_len) ? options.seq_len : Fixed(options.workload.seq_len);
  entry->q_len = given(options.q_len) ? options.q_len : Fixed(options.workload.q_len);
  entry->drawn = !IsFixed(entry->seq_len) || !IsFixed(entry->q_len);
  const std::string& prefix = options.field_prefix;
  if (auto s = entry->seq_len.Validate(absl::StrCat(prefix, "seq_len")); !s.ok()) return s;
  if (!given(entry->q_len)) return absl::OkStatus();
  return entry->q_len.Validate(absl::StrCat(prefix, "q_len"));
}

absl::Status RequestMix::CheckInputs(const WorkloadOptions& workload,
                                     const std::string& prefix) const {
  const absl::StatusOr<int64_t> bytes = Workload::InputBytes(workload, prefix);
  if (!bytes.ok()) return bytes.status();
  int64_t total = *bytes * workload.num_inputs;
  for (const Entry& other : entries_) {
    total += *Workload::InputBytes(other.workload->options()) * other.workload->num_inputs();
  }
  if (total <= kMaxMixInputBytes) return absl::OkStatus();
  return Invalid(prefix, "inputs is ", workload.num_inputs, ", with which the mix holds ", total,
                 " bytes of inputs; accepted: up to ", kMaxMixInputBytes);
}

int64_t RequestMix::QueryLength(const Entry& entry, int64_t kv_len, double quantile) {
  if (IsFixed(entry.q_len) && entry.q_len.min == 0) return kv_len;
  const int64_t q_len = entry.q_len.Draw(quantile);
  return entry.drawn ? std::min(q_len, kv_len) : q_len;
}

void RequestMix::ChooseBackwardLengths(Entry* entry) {
  const int count = std::max(kBackwardLengths, entry->workload->num_inputs());
  for (int n = 0; n < count; ++n) {
    // Not more lengths than promised, however many inputs there are.
    const double middle = (n % kBackwardLengths) + 0.5;
    PlannedRequest choice;
    choice.kv_len = entry->seq_len.Draw(middle / kBackwardLengths);
    // Multiples of the golden ratio spread evenly whatever the order of the keys.
    choice.q_len = QueryLength(*entry, choice.kv_len, std::fmod(middle * std::numbers::phi, 1.0));
    entry->choices.push_back(choice);
  }
}

void RequestMix::ChooseTraceLengths(Entry* entry) const {
  entry->drawn = true;
  entry->choices.reserve(options_.trace.size());
  for (size_t n = 0; n < options_.trace.size(); ++n) {
    const TraceRow& row = options_.trace[n];
    const double quantile = RandomUnit(options_.seed, RandomStream::kQueries, n);
    const int64_t q_len = row.q_len > 0 ? row.q_len : QueryLength(*entry, row.seq_len, quantile);
    entry->choices.push_back({.q_len = q_len, .kv_len = row.seq_len});
  }
}

void RequestMix::CollectForwardCalls(Entry* entry) {
  if (entry->workload->direction() != LoadDirection::kBackward) return;
  std::map<std::tuple<int, int64_t, int64_t>, int> numbers;
  for (PlannedRequest& choice : entry->choices) {
    const auto key = std::tuple(choice.input, choice.q_len, choice.kv_len);
    const auto [it, is_new] = numbers.emplace(key, static_cast<int>(numbers.size()));
    choice.forward = it->second;
    if (is_new) entry->forward_calls.push_back(choice);
  }
}

absl::Status RequestMix::CheckForwardAnswers() const {
  int64_t bytes = 0;
  for (size_t n = 0; n < entries_.size(); ++n) {
    const Entry& entry = entries_[n];
    const WorkloadOptions& shape = entry.workload->options();
    for (const PlannedRequest& call : entry.forward_calls) {
      bytes += call.q_len * shape.heads *
               (shape.head_dim * static_cast<int64_t>(SizeOf(shape.dtype)) +
                static_cast<int64_t>(sizeof(float)));
    }
    if (bytes > kMaxForwardAnswerBytes) {
      return Invalid(options_.entries[n].field_prefix,
                     "direction is backward, for which the answers of ", entry.forward_calls.size(),
                     " forward calls are held: ", bytes, " bytes in all; accepted: up to ",
                     kMaxForwardAnswerBytes, "; fewer inputs or smaller lengths make them fewer");
    }
  }
  return absl::OkStatus();
}

int RequestMix::EntryAt(int64_t index) const {
  const double weight =
      RandomUnit(options_.seed, RandomStream::kEntry, static_cast<uint64_t>(index)) *
      entries_.back().cumulative_weight;
  int n = 0;
  while (n + 1 < num_entries() && weight >= entries_[n].cumulative_weight) ++n;
  return n;
}

PlannedRequest RequestMix::RequestOf(int entry, int64_t index) const {
  const Entry& of = entries_[entry];
  const auto at = static_cast<uint64_t>(index);
  const uint64_t seed = options_.seed;
  const int input =
      static_cast<int>(RandomBelow(of.workload->num_inputs(), seed, RandomStream::kInput, at));
  if (!of.choices.empty()) {
    const auto count = static_cast<int64_t>(of.choices.size());
    PlannedRequest request =
        of.choices[options_.trace.empty() ? RandomBelow(count, seed, RandomStream::kKeys, at)
                                          : index % count];
    // A trace that comes round need not bring the same bytes, where no answer was prepared.
    if (!options_.trace.empty() && request.forward < 0) request.input = input;
    return request;
  }
  PlannedRequest request{.entry = entry, .input = input};
  request.kv_len = of.seq_len.Draw(RandomUnit(seed, RandomStream::kKeys, at));
  request.q_len = QueryLength(of, request.kv_len, RandomUnit(seed, RandomStream::kQueries, at));
  return request;
}

double RequestMix::Share(int entry) const {
  return options_.entries[entry].weight / entries_.back().cumulative_weight;
}

std::string RequestMix::Name(int entry) const {
  const std::string& name = options_.entries[entry].name;
  if (!name.empty()) return name;
  const Entry& of = entries_[entry];
  const std::string keys = options_.trace.empty()
                               ? of.seq_len.Describe()
                               : absl::StrCat(options_.trace.size(), " traced lengths");
  const WorkloadOptions& shape = of.workload->options();
  return absl::StrCat(client::Name(shape.direction), " ", keys, " x ", shape.heads, " x ",
                      shape.head_dim, " ", flashbias::Name(shape.dtype));
}

std::string RequestMix::Describe(int entry) const {
  const Entry& of = entries_[entry];
  const WorkloadOptions& shape = of.workload->options();
  const std::string& name = options_.entries[entry].name;
  std::string text = name.empty() ? "" : absl::StrCat(name, ": ");
  absl::StrAppend(&text, client::Name(shape.direction), ", ");
  if (options_.trace.empty()) {
    absl::StrAppend(&text, of.seq_len.Describe(), " keys");
  } else {
    absl::StrAppend(&text, options_.trace.size(), " traced lengths up to ", shape.seq_len, " keys");
  }
  if (!IsFixed(of.q_len) || of.q_len.min != 0) {
    absl::StrAppend(&text, ", ", of.q_len.Describe(), " queries");
  }
  absl::StrAppend(&text, ", ", shape.heads, " heads");
  if (shape.kv_heads != shape.heads) absl::StrAppend(&text, " (", shape.kv_heads, " of keys)");
  absl::StrAppend(&text, " x ", shape.head_dim, ", ", flashbias::Name(shape.dtype),
                  shape.causal ? ", causal" : ", full", ", ",
                  shape.alibi == "none" ? "no" : shape.alibi, " slopes");
  if (shape.eps.has_value()) absl::StrAppend(&text, ", eps ", *shape.eps);
  return text;
}

}  // namespace flashbias::client
