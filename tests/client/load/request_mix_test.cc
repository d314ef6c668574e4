#include "client/load/requests/request_mix.h"

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "client/request_validation.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;
using Kind = LengthDistribution::Kind;

std::unique_ptr<RequestMix> Make(MixOptions options) {
  auto mix = RequestMix::Create(std::move(options));
  EXPECT_TRUE(mix.ok()) << mix.status();
  return *std::move(mix);
}

std::string MessageOf(MixOptions options) {
  const auto mix = RequestMix::Create(std::move(options));
  EXPECT_EQ(mix.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(mix.status().message());
}

WorkloadOptions Small() {
  return {.heads = 2, .head_dim = 8, .seq_len = 16, .dtype = DType::kFloat32, .num_inputs = 3};
}

// Three entries, two of them with drawn lengths.
MixOptions ThreeEntries(uint64_t seed) {
  MixOptions options{.seed = seed};
  options.entries.push_back({.name = "fixed", .weight = 5, .workload = Small()});
  options.entries.push_back({.name = "uniform",
                             .weight = 3,
                             .workload = Small(),
                             .seq_len = {.kind = Kind::kUniform, .min = 1, .max = 40}});
  options.entries.push_back(
      {.name = "decode",
       .weight = 2,
       .workload = Small(),
       .seq_len = {.kind = Kind::kLogNormal, .min = 1, .max = 64, .median = 20, .sigma = 1},
       .q_len = {.kind = Kind::kChoice, .values = {1, 4}}});
  return options;
}

using Numbers = std::tuple<int, int, int64_t, int64_t, int>;
Numbers NumbersOf(const PlannedRequest& r) {
  return {r.entry, r.input, r.q_len, r.kv_len, r.forward};
}

TEST(RequestMixTest, SharesFollowTheWeights) {
  const auto mix = Make(ThreeEntries(11));
  EXPECT_EQ(mix->num_entries(), 3);
  constexpr int kRequests = 30000;
  std::vector<int> counts(3);
  std::vector<std::map<int, int>> inputs(3);
  for (int64_t n = 0; n < kRequests; ++n) {
    const PlannedRequest request = mix->At(n);
    ++counts[request.entry];
    ++inputs[request.entry][request.input];
  }
  for (int entry = 0; entry < 3; ++entry) {
    const double share = mix->Share(entry);
    EXPECT_NEAR(counts[entry], kRequests * share, 3 * std::sqrt(kRequests * share * (1 - share)))
        << entry;
    ASSERT_EQ(inputs[entry].size(), 3u);
    for (const auto& [input, count] : inputs[entry]) {
      EXPECT_NEAR(count, counts[entry] / 3.0, 3.5 * std::sqrt(counts[entry] * 2.0 / 9));
    }
  }
  EXPECT_DOUBLE_EQ(mix->Share(0), 0.5);
}

TEST(RequestMixTest, ASeedGivesTheSameRequestsInAnyOrder) {
  const auto a = Make(ThreeEntries(5));
  const auto b = Make(ThreeEntries(5));
  const auto other = Make(ThreeEntries(6));
  int different = 0;
  for (int64_t n = 499; n >= 0; --n) {
    EXPECT_EQ(NumbersOf(a->At(n)), NumbersOf(b->At(n)));
    different += NumbersOf(a->At(n)) != NumbersOf(other->At(n)) ? 1 : 0;
  }
  EXPECT_GT(different, 250);
  const auto& q = a->workload(1).input(2).q;
  EXPECT_EQ(q, b->workload(1).input(2).q);
  EXPECT_NE(q, other->workload(1).input(2).q);
  EXPECT_NE(q, a->workload(1).input(1).q);
  EXPECT_NE(q, a->workload(1).input(2).k);
  EXPECT_NE(a->workload(0).input(0).q.substr(0, 64), a->workload(1).input(0).q.substr(0, 64))
      << "entries have inputs of their own";
}

TEST(RequestMixTest, LengthsAreThoseOfTheirDistributions) {
  const auto mix = Make(ThreeEntries(7));
  std::map<int64_t, int> uniform;
  std::set<int64_t> decode_keys;
  bool cut = false;
  for (int64_t n = 0; n < 20000; ++n) {
    const PlannedRequest r = mix->At(n);
    if (r.entry == 0) {
      EXPECT_EQ(r.kv_len, 16);
      EXPECT_EQ(r.q_len, 16);
    } else if (r.entry == 1) {
      EXPECT_EQ(r.q_len, r.kv_len);
      ++uniform[r.kv_len];
    } else {
      EXPECT_TRUE(r.q_len == 1 || r.q_len == std::min<int64_t>(4, r.kv_len)) << r.q_len;
      cut |= r.q_len > 1 && r.q_len < 4;
      decode_keys.insert(r.kv_len);
    }
  }
  EXPECT_EQ(uniform.size(), 40u);
  EXPECT_EQ(uniform.rbegin()->first, 40);
  for (const auto& [length, count] : uniform) EXPECT_NEAR(count, 150, 60) << length;
  EXPECT_GT(decode_keys.size(), 50u);
  EXPECT_TRUE(cut) << "queries beyond the keys";
  EXPECT_EQ(mix->workload(2).options().seq_len, 64);
  EXPECT_EQ(mix->workload(2).options().q_len, 4);
}

TEST(RequestMixTest, FixedLengthsAreTakenAsTheyAre) {
  WorkloadOptions workload = Small();
  workload.q_len = 20;
  const auto mix = Make({.entries = {{.workload = workload}}});
  EXPECT_EQ(mix->At(3).q_len, 20) << "more queries than keys";
  EXPECT_EQ(mix->At(3).kv_len, 16);
}

TEST(RequestMixTest, ARequestIsAViewOfTheFirstRows) {
  WorkloadOptions options = Small();
  options.direction = LoadDirection::kBoth;
  options.heads = 4;
  options.kv_heads = 2;
  options.seq_len = 40;
  options.q_len = 10;
  const auto made = Workload::Create(options);
  ASSERT_TRUE(made.ok());
  const Workload& workload = **made;
  const Workload::Input& input = workload.input(1);
  EXPECT_EQ(input.q.size(), 10u * 4 * 8 * 4);
  EXPECT_EQ(input.k.size(), 40u * 2 * 8 * 4);
  EXPECT_EQ(input.d_o.size(), input.q.size());

  const AttendRequest request = workload.request(1, 3, 17);
  EXPECT_EQ(request.q.data, input.q.data());
  EXPECT_EQ(request.k.data, input.k.data());
  EXPECT_EQ(request.v.data, input.v.data());
  EXPECT_EQ(request.q.shape, std::vector<int64_t>({3, 4, 8}));
  EXPECT_EQ(request.k.shape, std::vector<int64_t>({17, 2, 8}));
  EXPECT_EQ(request.v.shape, request.k.shape);

  const std::vector<float> lse(12);
  const AttendBackwardRequest backward = workload.backward_request(1, 3, 17, "", lse);
  EXPECT_EQ(backward.d_o.data, input.d_o.data());
  EXPECT_EQ(backward.d_o.shape, request.q.shape);
  EXPECT_EQ(backward.o.shape, request.q.shape);

  // Queries stand at the end of the keys.
  const Sequence sequence = Workload::sequence(3, 17);
  const AttentionProblem problem = workload.problem(1, sequence);
  EXPECT_EQ(problem.sequences[0].query_start, 14);
  EXPECT_EQ(problem.total_q, 3);
  EXPECT_EQ(problem.total_kv, 17);
  EXPECT_EQ(problem.k, request.k.data);
}

TEST(RequestMixTest, BytesAreThoseOfTheRequests) {
  for (const LoadDirection direction :
       {LoadDirection::kForward, LoadDirection::kBackward, LoadDirection::kBoth}) {
    for (const bool bias_gradient : {false, true}) {
      WorkloadOptions options = Small();
      options.direction = direction;
      options.heads = 4;
      options.kv_heads = 2;
      options.dtype = DType::kFloat16;
      options.want_lse = bias_gradient;
      options.bias_gradient = bias_gradient && direction != LoadDirection::kForward;
      const auto made = Workload::Create(options);
      ASSERT_TRUE(made.ok()) << made.status();
      const Workload& workload = **made;
      int64_t request_bytes = 0;
      int64_t response_bytes = 0;
      if (direction != LoadDirection::kBackward) {
        const auto forward = SummarizeRequest(workload.request(0, 5, 9));
        ASSERT_TRUE(forward.ok());
        request_bytes += forward->request_bytes;
        response_bytes += forward->response_bytes;
      }
      if (direction != LoadDirection::kForward) {
        const std::vector<float> lse(5 * 4);
        const auto backward = SummarizeRequest(workload.backward_request(0, 5, 9, "", lse));
        ASSERT_TRUE(backward.ok()) << backward.status();
        request_bytes += backward->request_bytes;
        response_bytes += backward->response_bytes;
      }
      EXPECT_EQ(workload.bytes(5, 9).request, request_bytes);
      EXPECT_EQ(workload.bytes(5, 9).response, response_bytes);
    }
  }
}

TEST(RequestMixTest, EveryTensorIsAnother) {
  WorkloadOptions options = Small();
  options.direction = LoadDirection::kBoth;
  const auto workload = Workload::Create(options);
  ASSERT_TRUE(workload.ok());
  std::set<std::string> beginnings;
  for (int input = 0; input < 3; ++input) {
    const Workload::Input& of = (*workload)->input(input);
    for (const std::string* tensor : {&of.q, &of.k, &of.v, &of.d_o}) {
      beginnings.insert(tensor->substr(0, 32));
    }
  }
  EXPECT_EQ(beginnings.size(), 12u);
}

TEST(RequestMixTest, InputsAreStandardNormal) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    WorkloadOptions options = Small();
    options.dtype = dtype;
    options.seq_len = 4096;
    const auto workload = Workload::Create(options);
    ASSERT_TRUE(workload.ok());
    const std::string& k = (*workload)->input(0).k;
    double sum = 0;
    double squares = 0;
    double neighbours = 0;
    constexpr int64_t kCount = 4096 * 2 * 8;
    for (int64_t n = 0; n < kCount; ++n) {
      const auto value = static_cast<double>(LoadElement(dtype, k.data(), n));
      sum += value;
      squares += value * value;
      if (n > 0) {
        neighbours += value * static_cast<double>(LoadElement(dtype, k.data(), n - 1));
      }
    }
    EXPECT_NEAR(sum / kCount, 0, 0.02);
    EXPECT_NEAR(squares / kCount, 1, 0.03);
    EXPECT_NEAR(neighbours / kCount, 0, 0.02);
  }
}

TEST(RequestMixTest, BackwardRequestsTakeFewLengthsWhoseForwardCallsAreKnown) {
  MixOptions options{.seed = 3};
  options.entries.push_back({.workload = Small(), .seq_len = {.kind = Kind::kFixed, .min = 9}});
  options.entries.push_back(
      {.workload = Small(), .seq_len = {.kind = Kind::kUniform, .min = 1, .max = 3200}});
  for (MixEntryOptions& entry : options.entries) {
    entry.workload.direction = LoadDirection::kBackward;
  }
  options.entries.push_back(
      {.workload = Small(), .seq_len = {.kind = Kind::kUniform, .min = 1, .max = 3200}});
  options.entries.back().workload.direction = LoadDirection::kBoth;
  const auto mix = Make(std::move(options));
  ASSERT_EQ(mix->forward_calls(0).size(), 3u) << "one length, three inputs";
  ASSERT_EQ(mix->forward_calls(1).size(), 32u);
  EXPECT_TRUE(mix->forward_calls(2).empty());
  std::vector<std::set<int64_t>> lengths(3);
  std::vector<std::set<int>> calls(3);
  double sum = 0;
  int count = 0;
  for (int64_t n = 0; n < 6000; ++n) {
    const PlannedRequest request = mix->At(n);
    lengths[request.entry].insert(request.kv_len);
    calls[request.entry].insert(request.forward);
    if (request.entry == 1) {
      sum += static_cast<double>(request.kv_len);
      ++count;
    }
    if (request.entry == 2) {
      EXPECT_EQ(request.forward, -1);
      continue;
    }
    const PlannedRequest& call = mix->forward_calls(request.entry)[request.forward];
    EXPECT_EQ(NumbersOf(call), NumbersOf(request));
  }
  EXPECT_EQ(calls[0].size(), 3u);
  EXPECT_EQ(calls[1].size(), 32u);
  EXPECT_EQ(lengths[1].size(), 32u);
  EXPECT_EQ(lengths[2], lengths[1]);
  EXPECT_EQ(*lengths[1].begin(), 51) << "the middle of the first of 32 parts of 100";
  EXPECT_NEAR(sum / count, 1600, 80);
}

TEST(RequestMixTest, ATraceIsFollowedAndBeginsAgain) {
  MixOptions options{.entries = {{.workload = Small()}},
                     .trace = {{.seq_len = 5}, {.seq_len = 30, .q_len = 2}, {.seq_len = 7}}};
  const auto mix = Make(options);
  EXPECT_EQ(mix->workload(0).options().seq_len, 30);
  EXPECT_EQ(mix->workload(0).options().q_len, 7);
  std::set<int> inputs;
  for (int64_t n = 0; n < 30; n += 3) {
    EXPECT_EQ(mix->At(n).kv_len, 5);
    EXPECT_EQ(mix->At(n).q_len, 5);
    EXPECT_EQ(mix->At(n + 1).kv_len, 30);
    EXPECT_EQ(mix->At(n + 1).q_len, 2);
    EXPECT_EQ(mix->At(n + 2).kv_len, 7);
    inputs.insert(mix->At(n).input);
  }
  EXPECT_EQ(inputs.size(), 3u) << "a row brings different inputs";

  options.entries[0].workload.direction = LoadDirection::kBackward;
  options.entries[0].workload.q_len = 6;
  const auto backward = Make(options);
  ASSERT_EQ(backward->forward_calls(0).size(), 3u);
  EXPECT_EQ(backward->At(4).forward, 1);
  EXPECT_EQ(backward->At(3).q_len, 5) << "q_len of the entry, cut off at the keys";
  EXPECT_EQ(backward->At(5).q_len, 6);
}

TEST(RequestMixTest, EntriesAreDescribed) {
  MixOptions options = ThreeEntries(1);
  options.entries[0].name = "";
  options.entries[0].workload.kv_heads = 1;
  options.entries[0].workload.eps = 0.0f;
  const auto mix = Make(std::move(options));
  EXPECT_EQ(mix->Name(0), "forward 16 x 2 x 8 float32");
  EXPECT_EQ(mix->Name(1), "uniform");
  EXPECT_EQ(mix->Describe(0),
            "forward, 16 keys, 2 heads (1 of keys) x 8, float32, causal, seed slopes, eps 0");
  EXPECT_EQ(mix->Describe(2),
            "decode: forward, 1 to 64 (lognormal, median 20) keys, 1, 4 queries, 2 heads x 8, "
            "float32, causal, seed slopes");
  const auto traced = Make({.entries = {{.workload = Small()}}, .trace = {{.seq_len = 5}}});
  EXPECT_THAT(traced->Describe(0), HasSubstr("1 traced lengths up to 5 keys"));
}

TEST(RequestMixTest, ErrorsNameTheField) {
  const auto flag = [](const WorkloadOptions& workload) {
    return MessageOf({.entries = {{.workload = workload}}});
  };
  EXPECT_EQ(flag({.heads = 0}), "--heads is 0; accepted: 1 to 65536");
  EXPECT_EQ(flag({.heads = 65537}), "--heads is 65537; accepted: 1 to 65536");
  EXPECT_EQ(flag({.heads = 4, .kv_heads = 3}), "--kv_heads is 3; accepted: divisors of --heads, 4");
  EXPECT_EQ(flag({.head_dim = 129}), "--head_dim is 129; accepted: 1 to 128");
  EXPECT_EQ(flag({.seq_len = 0}), "--seq_len is 0; accepted: 1 to 16777216");
  EXPECT_EQ(flag({.q_len = -1}), "--q_len is -1; accepted: 1 to 16777216");
  EXPECT_EQ(flag({.alibi = "standart"}), "--alibi is 'standart'; accepted: standard, seed, none");
  EXPECT_EQ(flag({.eps = 1.0f}), "--eps is 1; accepted: 0 to 2^-8");
  EXPECT_EQ(flag({.num_inputs = 65}), "--inputs is 65; accepted: 1 to 64");
  EXPECT_EQ(flag({.bias_gradient = true}),
            "--bias_gradient is set; accepted: only with --direction backward or both");
  EXPECT_EQ(flag({.direction = LoadDirection::kBoth, .alibi = "none", .bias_gradient = true}),
            "--bias_gradient is set; accepted: only with slopes");
  EXPECT_THAT(flag({.heads = 65536, .head_dim = 128, .seq_len = 1 << 20}), HasSubstr("--seq_len"));

  EXPECT_EQ(MessageOf({}), "the mix has no entries; accepted: at least one");
  MixOptions options = ThreeEntries(1);
  options.entries[2].field_prefix = "entries[2].";
  options.entries[2].weight = 0;
  EXPECT_EQ(MessageOf(options), "entries[2].weight is 0; accepted: positive numbers");
  options.entries[2].weight = 1;
  options.entries[2].workload.heads = -1;
  EXPECT_EQ(MessageOf(options), "entries[2].heads is -1; accepted: 1 to 65536");
  options.entries[2].workload = Small();
  options.entries[2].seq_len.max = 0;
  EXPECT_EQ(MessageOf(options), "entries[2].seq_len.max is 0; accepted: 1 to 16777216");
  options = ThreeEntries(1);
  options.trace = {{.seq_len = 4}};
  EXPECT_EQ(MessageOf(options), "a trace comes with a mix of 3 entries; accepted: one");
  options.entries.resize(1);
  options.trace = {{.seq_len = 4}, {.seq_len = 4, .q_len = 5}};
  EXPECT_EQ(MessageOf(options), "row 1 of the trace: q_len is 5; accepted: 0 to 4");
  options.trace = {{.seq_len = 0}};
  EXPECT_EQ(MessageOf(options), "row 0 of the trace: seq_len is 0; accepted: 1 to 16777216");
}

TEST(RequestMixTest, MemoryIsBounded) {
  // 2 GB an input; nothing is made before the sum is known.
  const WorkloadOptions large = {.heads = 32, .head_dim = 128, .seq_len = 80000, .num_inputs = 64};
  EXPECT_EQ(MessageOf({.entries = {{.workload = large}}}),
            "--inputs is 64, with which the mix holds 125829120000 bytes of inputs; accepted: up "
            "to 34359738368");
  // Small inputs whose answers are many: every length of a trace is one.
  MixOptions options{.entries = {{.workload = {.direction = LoadDirection::kBackward,
                                               .heads = 64,
                                               .kv_heads = 1,
                                               .head_dim = 32,
                                               .num_inputs = 1}}}};
  for (int64_t n = 0; n < 3000; ++n) options.trace.push_back({.seq_len = 1024 + n});
  EXPECT_THAT(MessageOf(options),
              HasSubstr("--direction is backward, for which the answers of 3000 forward calls are "
                        "held: "));
}

}  // namespace
}  // namespace flashbias::client
