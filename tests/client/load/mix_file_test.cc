#include "client/load/requests/mix_file.h"

#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;
using Kind = LengthDistribution::Kind;

std::vector<MixEntryOptions> Parse(const std::string& json, const WorkloadOptions& defaults = {}) {
  const auto entries = ParseMix(json, defaults);
  EXPECT_TRUE(entries.ok()) << entries.status();
  return entries.ok() ? *entries : std::vector<MixEntryOptions>(10);
}

std::string ErrorOf(const std::string& json) {
  const auto entries = ParseMix(json, {});
  EXPECT_EQ(entries.status().code(), absl::StatusCode::kInvalidArgument) << json;
  return std::string(entries.status().message());
}
// Of one entry with these fields.
std::string EntryErrorOf(const std::string& fields) {
  return ErrorOf(absl::StrCat(R"({"entries": [{}, {)", fields, "}]}"));
}

TEST(MixFileTest, EveryFieldIsRead) {
  const auto entries = Parse(R"({"entries": [{
      "name": "all", "weight": 2.5, "direction": "both", "heads": 8, "kv_heads": 2,
      "head_dim": 64, "seq_len": 300, "q_len": 7, "dtype": "bfloat16", "alibi": "standard",
      "causal": false, "eps": 0.001, "want_lse": true, "bias_gradient": true, "inputs": 3}]})");
  ASSERT_EQ(entries.size(), 1u);
  const MixEntryOptions& entry = entries[0];
  EXPECT_EQ(entry.name, "all");
  EXPECT_EQ(entry.weight, 2.5);
  EXPECT_EQ(entry.workload.direction, LoadDirection::kBoth);
  EXPECT_EQ(entry.workload.heads, 8);
  EXPECT_EQ(entry.workload.kv_heads, 2);
  EXPECT_EQ(entry.workload.head_dim, 64);
  EXPECT_EQ(entry.seq_len.kind, Kind::kFixed);
  EXPECT_EQ(entry.seq_len.min, 300);
  EXPECT_EQ(entry.q_len.min, 7);
  EXPECT_EQ(entry.workload.dtype, DType::kBFloat16);
  EXPECT_EQ(entry.workload.alibi, "standard");
  EXPECT_FALSE(entry.workload.causal);
  EXPECT_EQ(entry.workload.eps, 0.001f);
  EXPECT_TRUE(entry.workload.want_lse);
  EXPECT_TRUE(entry.workload.bias_gradient);
  EXPECT_EQ(entry.workload.num_inputs, 3);
  EXPECT_EQ(entry.field_prefix, "entries[0].");
}

TEST(MixFileTest, DistributionsAreRead) {
  const auto entries = Parse(R"({"entries": [
      {"seq_len": {"distribution": "uniform", "min": 4, "max": 9}},
      {"seq_len": {"distribution": "lognormal", "median": 90.5, "sigma": 0.5, "min": 1, "max": 99},
       "q_len": {"distribution": "choice", "values": [1, 2], "weights": [3, 0.5]}},
      {"seq_len": {"distribution": "choice", "values": [5]}}]})");
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].seq_len.kind, Kind::kUniform);
  EXPECT_EQ(entries[0].seq_len.min, 4);
  EXPECT_EQ(entries[0].seq_len.max, 9);
  EXPECT_EQ(entries[1].seq_len.kind, Kind::kLogNormal);
  EXPECT_EQ(entries[1].seq_len.median, 90.5);
  EXPECT_EQ(entries[1].seq_len.sigma, 0.5);
  EXPECT_EQ(entries[1].seq_len.min, 1);
  EXPECT_EQ(entries[1].seq_len.max, 99);
  EXPECT_EQ(entries[1].q_len.kind, Kind::kChoice);
  EXPECT_EQ(entries[1].q_len.values, std::vector<int64_t>({1, 2}));
  EXPECT_EQ(entries[1].q_len.weights, std::vector<double>({3, 0.5}));
  EXPECT_TRUE(entries[2].seq_len.weights.empty());
}

TEST(MixFileTest, WhatIsLeftOutIsAsInTheDefaults) {
  const WorkloadOptions defaults = {.direction = LoadDirection::kBoth,
                                    .heads = 6,
                                    .kv_heads = 3,
                                    .head_dim = 16,
                                    .seq_len = 77,
                                    .q_len = 5,
                                    .dtype = DType::kFloat32,
                                    .alibi = "none",
                                    .causal = false,
                                    .eps = 0.0f,
                                    .want_lse = true,
                                    .num_inputs = 2};
  const auto entries = Parse(R"({"entries": [{}, {"heads": 4, "q_len": 0}]})", defaults);
  ASSERT_EQ(entries.size(), 2u);
  const WorkloadOptions& same = entries[0].workload;
  EXPECT_EQ(same.direction, LoadDirection::kBoth);
  EXPECT_EQ(same.heads, 6);
  EXPECT_EQ(same.kv_heads, 3);
  EXPECT_EQ(same.head_dim, 16);
  EXPECT_EQ(same.dtype, DType::kFloat32);
  EXPECT_EQ(same.alibi, "none");
  EXPECT_FALSE(same.causal);
  EXPECT_EQ(same.eps, 0.0f);
  EXPECT_TRUE(same.want_lse);
  EXPECT_EQ(same.num_inputs, 2);
  EXPECT_EQ(entries[0].weight, 1);
  EXPECT_EQ(entries[1].workload.kv_heads, 0) << "as many as the entry's heads";

  const auto mix = RequestMix::Create({.entries = entries});
  ASSERT_TRUE(mix.ok()) << mix.status();
  EXPECT_EQ((*mix)->RequestOf(0, 0).kv_len, 77);
  EXPECT_EQ((*mix)->RequestOf(0, 0).q_len, 5);
  EXPECT_EQ((*mix)->RequestOf(1, 0).q_len, 77) << "0: as many as the keys";
}

TEST(MixFileTest, WhatIsNoMixIsRefused) {
  EXPECT_THAT(ErrorOf("{\"entries\": [\n{\"heads\": }]}"),
              HasSubstr("not JSON: parse error at line 2"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("not JSON: "));
  EXPECT_THAT(ErrorOf("{\"entries\": [{\"name\": \"\xff\"}]}"), HasSubstr("not JSON: "));
  EXPECT_THAT(ErrorOf("{\"entries\": [{\"weight\": 1e999}]}"), HasSubstr("'1e999'"));
  EXPECT_EQ(ErrorOf("[]"), "the mix is an array; accepted: an object with entries");
  EXPECT_EQ(ErrorOf("{}"), "entries is missing");
  EXPECT_EQ(ErrorOf(R"({"entries": 5})"), "entries is 5; accepted: arrays of objects");
  EXPECT_EQ(ErrorOf(R"({"entries": []})"), "entries is empty; accepted: at least one entry");
  EXPECT_EQ(ErrorOf(R"({"entries": [{}], "weights": 1})"),
            "weights is not known; accepted: entries");
  EXPECT_EQ(ErrorOf(R"({"entries": [{}, 7]})"), "entries[1] is 7; accepted: objects");
  EXPECT_EQ(ErrorOf(R"({"entries": [{"heads": 1, "heads": 2}]})"),
            "the field \"heads\" comes twice in an object");
  EXPECT_EQ(ErrorOf(R"({"entries": [{"name": "a"}, {"name": "a"}]})"),
            "entries[1].name is \"a\", as of another entry; accepted: different names");
  // Deeper than any stack.
  EXPECT_THAT(ErrorOf(absl::StrCat(R"({"entries": )", std::string(200000, '['),
                                   std::string(200000, ']'), "}")),
              HasSubstr("entries[0] is an array"));
}

TEST(MixFileTest, WrongFieldsAreRefusedByName) {
  EXPECT_EQ(
      EntryErrorOf(R"("head": 1)"),
      "entries[1].head is not known; accepted: alibi, bias_gradient, causal, direction, "
      "dtype, eps, head_dim, heads, inputs, kv_heads, name, q_len, seq_len, want_lse, weight");
  for (const char* field : {"heads", "kv_heads", "head_dim", "inputs"}) {
    for (const char* value : {"\"8\"", "8.0", "1e2", "18446744073709551615", "null", "true"}) {
      EXPECT_THAT(EntryErrorOf(absl::StrCat("\"", field, "\": ", value)),
                  HasSubstr(absl::StrCat("entries[1].", field, " is ")))
          << value;
    }
  }
  EXPECT_EQ(EntryErrorOf(R"("heads": "8")"), "entries[1].heads is \"8\"; accepted: whole numbers");
  EXPECT_EQ(EntryErrorOf(R"("heads": [8])"),
            "entries[1].heads is an array; accepted: whole numbers");
  EXPECT_EQ(EntryErrorOf(R"("inputs": 0)"), "entries[1].inputs is 0; accepted: 1 to 64");
  EXPECT_EQ(EntryErrorOf(R"("inputs": 4294967297)"),
            "entries[1].inputs is 4294967297; accepted: 1 to 64");
  EXPECT_EQ(EntryErrorOf(R"("name": 3)"), "entries[1].name is 3; accepted: strings");
  EXPECT_EQ(EntryErrorOf(R"("weight": "1")"), "entries[1].weight is \"1\"; accepted: numbers");
  EXPECT_EQ(EntryErrorOf(R"("weight": 0)"), "entries[1].weight is 0.0; accepted: positive numbers");
  EXPECT_EQ(EntryErrorOf(R"("weight": -1)"),
            "entries[1].weight is -1.0; accepted: positive numbers");
  EXPECT_EQ(EntryErrorOf(R"("eps": "x")"), "entries[1].eps is \"x\"; accepted: numbers");
  EXPECT_EQ(EntryErrorOf(R"("alibi": 1)"), "entries[1].alibi is 1; accepted: strings");
  for (const char* field : {"causal", "want_lse", "bias_gradient"}) {
    EXPECT_EQ(EntryErrorOf(absl::StrCat("\"", field, "\": 1")),
              absl::StrCat("entries[1].", field, " is 1; accepted: true, false"));
  }
  EXPECT_EQ(EntryErrorOf(R"("direction": "back")"),
            "entries[1].direction is \"back\"; accepted: forward, backward, both");
  EXPECT_EQ(EntryErrorOf(R"("direction": 1)"), "entries[1].direction is 1; accepted: strings");
  EXPECT_EQ(EntryErrorOf(R"("dtype": "fp16")"),
            "entries[1].dtype is \"fp16\"; accepted: float16, bfloat16, float32");
  const std::string message =
      EntryErrorOf(absl::StrCat("\"dtype\": \"", std::string(500, 'x'), "\""));
  EXPECT_LT(message.size(), 200u);
}

TEST(MixFileTest, WrongLengthsAreRefusedByName) {
  const auto lengths = [](const std::string& value) {
    return EntryErrorOf(absl::StrCat("\"seq_len\": ", value));
  };
  EXPECT_EQ(lengths("0"), "entries[1].seq_len is 0; accepted: 1 to 16777216");
  EXPECT_EQ(lengths("-1"), "entries[1].seq_len is -1; accepted: 1 to 16777216");
  EXPECT_EQ(lengths("1.5"),
            "entries[1].seq_len is 1.5; accepted: whole numbers, objects with a distribution");
  EXPECT_EQ(EntryErrorOf(R"("q_len": 16777217)"),
            "entries[1].q_len is 16777217; accepted: 0 to 16777216");
  EXPECT_EQ(lengths("{}"), "entries[1].seq_len.distribution is missing");
  EXPECT_EQ(lengths(R"({"distribution": "normal"})"),
            "entries[1].seq_len.distribution is \"normal\"; accepted: uniform, lognormal, choice");
  EXPECT_EQ(lengths(R"({"distribution": 5})"),
            "entries[1].seq_len.distribution is 5; accepted: strings");
  EXPECT_EQ(lengths(R"({"distribution": "uniform", "min": 1})"),
            "entries[1].seq_len.max is missing");
  EXPECT_EQ(lengths(R"({"distribution": "uniform", "min": 1, "max": 2, "median": 1})"),
            "entries[1].seq_len.median is not known; accepted: distribution, max, min");
  EXPECT_EQ(lengths(R"({"distribution": "uniform", "min": 3, "max": 2})"),
            "entries[1].seq_len.max is 2; accepted: 3 to 16777216");
  EXPECT_EQ(lengths(R"({"distribution": "lognormal", "min": 3, "max": 9, "median": 5})"),
            "entries[1].seq_len.sigma is missing");
  EXPECT_EQ(lengths(R"({"distribution": "lognormal", "min": 3, "max": 9, "median": 5,
                        "sigma": -1})"),
            "entries[1].seq_len.sigma is -1; accepted: above 0, up to 10");
  EXPECT_EQ(lengths(R"({"distribution": "choice"})"), "entries[1].seq_len.values is missing");
  EXPECT_EQ(lengths(R"({"distribution": "choice", "values": 4})"),
            "entries[1].seq_len.values is 4; accepted: arrays of whole numbers");
  EXPECT_EQ(lengths(R"({"distribution": "choice", "values": [4, "5"]})"),
            "entries[1].seq_len.values[1] is \"5\"; accepted: whole numbers");
  EXPECT_EQ(lengths(R"({"distribution": "choice", "values": []})"),
            "entries[1].seq_len.values is empty; accepted: at least one length");
  EXPECT_EQ(lengths(R"({"distribution": "choice", "values": [4], "weights": [1, 2]})"),
            "entries[1].seq_len.weights has 2 entries; accepted: one for each of the 1 values");
}

TEST(MixFileTest, RangesOfFieldsAreNamedByTheMix) {
  const auto mix = RequestMix::Create({.entries = Parse(R"({"entries": [{}, {"heads": 0}]})")});
  EXPECT_EQ(mix.status().message(), "entries[1].heads is 0; accepted: 1 to 65536");
}

TEST(MixFileTest, TheExampleIsAMix) {
  std::ifstream file(FLASHBIAS_MIX_EXAMPLE);
  ASSERT_TRUE(file.is_open());
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  auto entries = Parse(text);
  ASSERT_EQ(entries.size(), 5u);
  EXPECT_EQ(entries[0].name, "chat prefill");
  EXPECT_EQ(entries[4].workload.direction, LoadDirection::kBackward);
  // Everything of it is accepted; the memory of all its inputs is too much for a test.
  for (MixEntryOptions& entry : entries) {
    entry.workload.num_inputs = 1;
    const auto mix = RequestMix::Create({.entries = {entry}});
    EXPECT_TRUE(mix.ok()) << mix.status();
  }
}

std::string TraceErrorOf(const std::string& csv) {
  const auto rows = ParseTrace(csv);
  EXPECT_EQ(rows.status().code(), absl::StatusCode::kInvalidArgument) << csv;
  return std::string(rows.status().message());
}

TEST(TraceTest, RowsAreRead) {
  const auto rows = ParseTrace(
      "arrival_seconds, seq_len ,q_len\r\n1700000000.5,100,1\r\n1700000000.75,7,7\n\n"
      "1700000002,16777216,3\n");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 3u);
  EXPECT_EQ((*rows)[0].arrival, absl::ZeroDuration());
  EXPECT_EQ((*rows)[0].seq_len, 100);
  EXPECT_EQ((*rows)[0].q_len, 1);
  EXPECT_EQ((*rows)[1].arrival, absl::Milliseconds(250));
  EXPECT_EQ((*rows)[2].arrival, absl::Milliseconds(1500));
  EXPECT_EQ((*rows)[2].seq_len, 16777216);
}

TEST(TraceTest, LengthsAreEnough) {
  const auto rows = ParseTrace("seq_len\n5\n6");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ((*rows)[1].seq_len, 6);
  EXPECT_EQ((*rows)[1].q_len, 0);
  EXPECT_EQ((*rows)[1].arrival, absl::ZeroDuration());
}

TEST(TraceTest, ErrorsNameTheLine) {
  EXPECT_EQ(TraceErrorOf(""),
            "line 1: the column '' is not known; accepted: seq_len, q_len, arrival_seconds");
  EXPECT_EQ(TraceErrorOf("seq_len,length\n"),
            "line 1: the column 'length' is not known; accepted: seq_len, q_len, arrival_seconds");
  EXPECT_EQ(TraceErrorOf("q_len\n4\n"), "line 1: the column 'seq_len' is missing");
  EXPECT_EQ(TraceErrorOf("seq_len,seq_len\n4,4\n"), "line 1: the column 'seq_len' comes twice");
  EXPECT_EQ(TraceErrorOf("seq_len\n"), "the trace has no rows; accepted: at least one");
  EXPECT_EQ(TraceErrorOf("seq_len\n4\nx\n"), "line 3: seq_len is 'x'; accepted: 1 to 16777216");
  EXPECT_EQ(TraceErrorOf("seq_len\n4\n\n0\n"), "line 4: seq_len is '0'; accepted: 1 to 16777216");
  EXPECT_EQ(TraceErrorOf("seq_len\n4.5\n"), "line 2: seq_len is '4.5'; accepted: 1 to 16777216");
  EXPECT_EQ(TraceErrorOf("seq_len,q_len\n4\n"),
            "line 2: it has 1 values; accepted: one for each of seq_len, q_len");
  EXPECT_EQ(TraceErrorOf("q_len,seq_len\n5,4\n"), "line 2: q_len is 5; accepted: up to seq_len, 4");
  EXPECT_EQ(TraceErrorOf("seq_len,q_len\n5,0\n"), "line 2: q_len is '0'; accepted: 1 to 16777216");
  EXPECT_EQ(TraceErrorOf("seq_len,arrival_seconds\n5,-1\n"),
            "line 2: arrival_seconds is '-1'; accepted: 0 to 1e10");
  EXPECT_EQ(TraceErrorOf("seq_len,arrival_seconds\n5,nan\n"),
            "line 2: arrival_seconds is 'nan'; accepted: 0 to 1e10");
  EXPECT_EQ(TraceErrorOf("seq_len,arrival_seconds\n5,2\n5,1\n"),
            "line 3: arrival_seconds is before that of the row above");
}

}  // namespace
}  // namespace flashbias::client
