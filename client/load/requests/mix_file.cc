#include "client/load/requests/mix_file.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"

namespace flashbias::client {
namespace {

using nlohmann::json;

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// As it stands in the file, but for what may be long.
std::string Shown(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  std::string text = value.dump();
  constexpr size_t kMost = 60;
  if (text.size() > kMost) text = absl::StrCat(text.substr(0, kMost), "...");
  return text;
}

std::optional<int64_t> ToWholeNumber(const json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::nullopt;
  }
  return value.get<int64_t>();
}

std::optional<double> ToNumber(const json& value) {
  return value.is_number() ? std::optional<double>(value.get<double>()) : std::nullopt;
}

// Reads the fields of one object; the first error stays, and what is read after it is not.
class FieldReader {
 public:
  // `prefix` is put before the names of its fields in messages. REQUIRES: it is an object, and
  // outlives the reader.
  FieldReader(const json& object, std::string prefix)
      : object_(object), prefix_(std::move(prefix)) {}

  // Null: it is not there, or an error came before.
  const json* Find(const char* name) {
    known_.insert(name);
    const auto it = object_.find(name);
    return it == object_.end() || !status_.ok() ? nullptr : &*it;
  }
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  void Refuse(absl::string_view name, const json& value, absl::string_view accepted) {
    Fail(Invalid(prefix_, name, " is ", Shown(value), "; accepted: ", accepted));
  }
  // A field without which the object means nothing.
  void Demand(const char* name) {
    known_.insert(name);
    if (!object_.contains(name)) Fail(Invalid(prefix_, name, " is missing"));
  }

  void Read(const char* name, int64_t* to) { ReadAs(name, "whole numbers", ToWholeNumber, to); }
  void Read(const char* name, double* to) { ReadAs(name, "numbers", ToNumber, to); }
  void Read(const char* name, bool* to) {
    const auto convert = [](const json& value) {
      return value.is_boolean() ? std::optional<bool>(value.get<bool>()) : std::nullopt;
    };
    ReadAs(name, "true, false", convert, to);
  }
  void Read(const char* name, std::string* to) {
    const auto convert = [](const json& value) {
      return value.is_string() ? std::optional<std::string>(value.get<std::string>())
                               : std::nullopt;
    };
    ReadAs(name, "strings", convert, to);
  }
  void Read(const char* name, std::vector<int64_t>* to) {
    ReadArray(name, "whole numbers", ToWholeNumber, to);
  }
  void Read(const char* name, std::vector<double>* to) { ReadArray(name, "numbers", ToNumber, to); }

  const std::string& prefix() const { return prefix_; }

  // To be called when every field was asked for: what else the object has is an error.
  absl::Status Finish() {
    for (const auto& [name, value] : object_.items()) {
      if (!known_.contains(name)) {
        Fail(Invalid(prefix_, name, " is not known; accepted: ", absl::StrJoin(known_, ", ")));
      }
    }
    return status_;
  }

 private:
  template <typename Value, typename Convert>
  void ReadAs(const char* name, const char* accepted, const Convert& convert, Value* to) {
    const json* const value = Find(name);
    if (value == nullptr) return;
    if (const std::optional<Value> converted = convert(*value); converted.has_value()) {
      *to = *converted;
    } else {
      Refuse(name, *value, accepted);
    }
  }
  template <typename Element, typename Convert>
  void ReadArray(const char* name, const char* accepted, const Convert& convert,
                 std::vector<Element>* to) {
    const json* const value = Find(name);
    if (value == nullptr) return;
    if (!value->is_array()) Refuse(name, *value, absl::StrCat("arrays of ", accepted));
    for (size_t n = 0; n < value->size() && status_.ok(); ++n) {
      if (const std::optional<Element> element = convert((*value)[n]); element.has_value()) {
        to->push_back(*element);
      } else {
        Refuse(absl::StrCat(name, "[", n, "]"), (*value)[n], accepted);
      }
    }
  }

  const json& object_;
  const std::string prefix_;
  std::set<std::string> known_;
  absl::Status status_;
};

absl::StatusOr<LengthDistribution> ParseDistribution(const json& value, const std::string& path) {
  LengthDistribution lengths;
  FieldReader reader(value, absl::StrCat(path, "."));
  std::string kind;
  reader.Demand("distribution");
  reader.Read("distribution", &kind);
  if (kind == "choice") {
    lengths.kind = LengthDistribution::Kind::kChoice;
    reader.Demand("values");
    reader.Read("values", &lengths.values);
    reader.Read("weights", &lengths.weights);
  } else if (kind == "uniform" || kind == "lognormal") {
    lengths.kind = kind == "uniform" ? LengthDistribution::Kind::kUniform
                                     : LengthDistribution::Kind::kLogNormal;
    for (const char* name : {"min", "max"}) reader.Demand(name);
    reader.Read("min", &lengths.min);
    reader.Read("max", &lengths.max);
    if (kind == "lognormal") {
      for (const char* name : {"median", "sigma"}) reader.Demand(name);
      reader.Read("median", &lengths.median);
      reader.Read("sigma", &lengths.sigma);
    }
  } else if (const json* const given = reader.Find("distribution"); given != nullptr) {
    reader.Refuse("distribution", *given, "uniform, lognormal, choice");
  }
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  if (absl::Status status = lengths.Validate(path); !status.ok()) return status;
  return lengths;
}

// `least`: of a number that stands for itself.
void ReadLengths(FieldReader* reader, const char* name, int64_t least, LengthDistribution* to) {
  const json* const value = reader->Find(name);
  if (value == nullptr) return;
  if (value->is_object()) {
    absl::StatusOr<LengthDistribution> lengths =
        ParseDistribution(*value, absl::StrCat(reader->prefix(), name));
    if (!lengths.ok()) return reader->Fail(lengths.status());
    *to = *std::move(lengths);
    return;
  }
  const std::optional<int64_t> length = ToWholeNumber(*value);
  if (!length.has_value()) {
    return reader->Refuse(name, *value, "whole numbers, objects with a distribution");
  }
  if (*length < least || *length > kMaxLength) {
    return reader->Refuse(name, *value, absl::StrCat(least, " to ", kMaxLength));
  }
  *to = {.kind = LengthDistribution::Kind::kFixed, .min = *length};
}

void ReadDirection(FieldReader* reader, LoadDirection* to) {
  std::string given = Name(*to);
  reader->Read("direction", &given);
  for (const LoadDirection direction :
       {LoadDirection::kForward, LoadDirection::kBackward, LoadDirection::kBoth}) {
    if (given == Name(direction)) {
      *to = direction;
      return;
    }
  }
  reader->Refuse("direction", json(given), "forward, backward, both");
}

void ReadDType(FieldReader* reader, DType* to) {
  std::string given = Name(*to);
  reader->Read("dtype", &given);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    if (given == Name(dtype)) {
      *to = dtype;
      return;
    }
  }
  reader->Refuse("dtype", json(given), "float16, bfloat16, float32");
}

absl::StatusOr<MixEntryOptions> ParseEntry(const json& value, const std::string& path,
                                           const WorkloadOptions& defaults) {
  if (!value.is_object()) return Invalid(path, " is ", Shown(value), "; accepted: objects");
  MixEntryOptions entry{.workload = defaults, .field_prefix = absl::StrCat(path, ".")};
  WorkloadOptions& workload = entry.workload;
  FieldReader reader(value, entry.field_prefix);
  reader.Read("name", &entry.name);
  reader.Read("weight", &entry.weight);
  ReadLengths(&reader, "seq_len", 1, &entry.seq_len);
  ReadLengths(&reader, "q_len", 0, &entry.q_len);
  // As many as the keys, whatever the defaults.
  if (reader.Find("q_len") != nullptr) workload.q_len = 0;
  ReadDirection(&reader, &workload.direction);
  reader.Read("heads", &workload.heads);
  // A default of kv_heads goes with the default of heads.
  if (reader.Find("heads") != nullptr) workload.kv_heads = 0;
  reader.Read("kv_heads", &workload.kv_heads);
  reader.Read("head_dim", &workload.head_dim);
  ReadDType(&reader, &workload.dtype);
  reader.Read("alibi", &workload.alibi);
  reader.Read("causal", &workload.causal);
  if (reader.Find("eps") != nullptr) {
    double eps = 0;
    reader.Read("eps", &eps);
    workload.eps = static_cast<float>(eps);
  }
  reader.Read("want_lse", &workload.want_lse);
  reader.Read("bias_gradient", &workload.bias_gradient);
  int64_t inputs = workload.num_inputs;
  reader.Read("inputs", &inputs);
  if (inputs < 1 || inputs > 64) reader.Refuse("inputs", json(inputs), "1 to 64");
  workload.num_inputs = static_cast<int>(inputs);
  if (!(entry.weight > 0)) reader.Refuse("weight", json(entry.weight), "positive numbers");
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  return entry;
}

// The parser keeps the last of several fields of one name; which of them was meant is not known.
absl::StatusOr<json> ParseJson(absl::string_view text) {
  std::vector<std::set<std::string>> open_objects;
  std::string repeated;
  const auto watch = [&](int /*depth*/, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& name = parsed.get_ref<const std::string&>();
      if (!open_objects.back().insert(name).second && repeated.empty()) repeated = name;
    }
    return true;
  };
  try {
    json parsed = json::parse(text, watch);
    if (!repeated.empty()) {
      return Invalid("the field ", Shown(json(repeated)), " comes twice in an object");
    }
    return parsed;
  } catch (const json::exception& error) {
    // No JSON, or a number beyond any double; without the library's own
    // "[json.exception.parse_error.101] ".
    const absl::string_view message = error.what();
    return Invalid("not JSON: ", message.substr(message.find("] ") + 2));
  }
}

// One line of a trace, of the columns named in the first.
class TraceLine {
 public:
  TraceLine(const std::vector<std::string>& names, int64_t number, absl::string_view text)
      : names_(names), number_(number), values_(absl::StrSplit(text, ',')) {
    if (values_.size() != names_.size()) {
      Fail("it has ", values_.size(), " values; accepted: one for each of ",
           absl::StrJoin(names_, ", "));
    }
  }

  absl::StatusOr<TraceRow> Parse() {
    TraceRow row;
    for (size_t n = 0; n < names_.size() && status_.ok(); ++n) {
      const absl::string_view value = absl::StripAsciiWhitespace(values_[n]);
      if (names_[n] == "seq_len") row.seq_len = Length(names_[n], value);
      if (names_[n] == "q_len") row.q_len = Length(names_[n], value);
      if (names_[n] == "arrival_seconds") row.arrival = Arrival(value);
    }
    if (row.q_len > row.seq_len) {
      Fail("q_len is ", row.q_len, "; accepted: up to seq_len, ", row.seq_len);
    }
    if (!status_.ok()) return status_;
    return row;
  }

 private:
  template <typename... Args>
  void Fail(const Args&... args) {
    if (status_.ok()) status_ = Invalid("line ", number_, ": ", args...);
  }
  int64_t Length(const std::string& name, absl::string_view value) {
    int64_t length = 0;
    if (!absl::SimpleAtoi(value, &length) || length < 1 || length > kMaxLength) {
      Fail(name, " is '", value, "'; accepted: 1 to ", kMaxLength);
    }
    return length;
  }
  absl::Duration Arrival(absl::string_view value) {
    double seconds = 0;
    if (!absl::SimpleAtod(value, &seconds) || !(seconds >= 0 && seconds <= 1e10)) {
      Fail("arrival_seconds is '", value, "'; accepted: 0 to 1e10");
    }
    return absl::Seconds(seconds);
  }

  const std::vector<std::string>& names_;
  const int64_t number_;
  const std::vector<std::string> values_;
  absl::Status status_;
};

absl::StatusOr<std::vector<std::string>> ParseTraceNames(absl::string_view line) {
  std::vector<std::string> names;
  std::set<std::string> seen;
  for (const absl::string_view field : absl::StrSplit(line, ',')) {
    const std::string name(absl::StripAsciiWhitespace(field));
    if (name != "seq_len" && name != "q_len" && name != "arrival_seconds") {
      return Invalid("line 1: the column '", name,
                     "' is not known; accepted: seq_len, q_len, arrival_seconds");
    }
    if (!seen.insert(name).second) return Invalid("line 1: the column '", name, "' comes twice");
    names.push_back(name);
  }
  if (!seen.contains("seq_len")) return Invalid("line 1: the column 'seq_len' is missing");
  return names;
}

}  // namespace

absl::StatusOr<std::vector<MixEntryOptions>> ParseMix(absl::string_view text,
                                                      const WorkloadOptions& defaults) {
  const absl::StatusOr<json> parsed = ParseJson(text);
  if (!parsed.ok()) return parsed.status();
  if (!parsed->is_object()) {
    return Invalid("the mix is ", Shown(*parsed), "; accepted: an object with entries");
  }
  FieldReader reader(*parsed, "");
  reader.Demand("entries");
  const json* const list = reader.Find("entries");
  if (list != nullptr && !list->is_array()) reader.Refuse("entries", *list, "arrays of objects");
  if (list != nullptr && list->empty()) {
    reader.Fail(Invalid("entries is empty; accepted: at least one entry"));
  }
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  std::vector<MixEntryOptions> entries;
  std::set<std::string> names;
  for (size_t n = 0; n < list->size(); ++n) {
    absl::StatusOr<MixEntryOptions> entry =
        ParseEntry((*list)[n], absl::StrCat("entries[", n, "]"), defaults);
    if (!entry.ok()) return entry.status();
    if (!entry->name.empty() && !names.insert(entry->name).second) {
      return Invalid("entries[", n, "].name is ", Shown(json(entry->name)),
                     ", as of another entry; accepted: different names");
    }
    entries.push_back(*std::move(entry));
  }
  return entries;
}

absl::StatusOr<std::vector<TraceRow>> ParseTrace(absl::string_view csv) {
  std::vector<TraceRow> rows;
  std::vector<std::string> names;
  int64_t number = 0;
  for (const absl::string_view line : absl::StrSplit(csv, '\n')) {
    ++number;
    if (number == 1) {
      absl::StatusOr<std::vector<std::string>> parsed = ParseTraceNames(line);
      if (!parsed.ok()) return parsed.status();
      names = *std::move(parsed);
      continue;
    }
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    absl::StatusOr<TraceRow> row = TraceLine(names, number, line).Parse();
    if (!row.ok()) return row.status();
    if (!rows.empty() && row->arrival < rows.back().arrival) {
      return Invalid("line ", number, ": arrival_seconds is before that of the row above");
    }
    rows.push_back(*row);
  }
  if (rows.empty()) return Invalid("the trace has no rows; accepted: at least one");
  const absl::Duration first = rows.front().arrival;
  for (TraceRow& row : rows) row.arrival -= first;
  return rows;
}

}  // namespace flashbias::client
