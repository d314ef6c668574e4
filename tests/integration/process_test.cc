// The programs as they are deployed: flashbias-server with a flag file and signals, flashbias-call
// on .npy files, flashbias-load with --verify.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/child_process.h"
#include "tests/integration/http_get.h"
#include "tests/integration/remote_problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"
#include "tests/support/npz.h"

namespace flashbias::integration {
namespace {

using client::AttendResult;
using client::AttentionClient;
using support::AttentionCase;
using support::Materialise;
using support::NpyArray;
using support::OwnedProblem;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(support::kSlowBuild ? 120 : 40);

std::string Program(const std::string& name) { return absl::StrCat(FLASHBIAS_BIN_DIR "/", name); }

class ProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/flashbias_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(directory_);
  }

  std::string Path(const std::string& name) const { return absl::StrCat(directory_, "/", name); }

  // flashbias-server on free loopback ports; flags come from a file.
  void StartServer(const std::string& more_flags = "") {
    ASSERT_TRUE(support::WriteFile(
                    Path("flags"),
                    absl::StrCat("--listen_address=127.0.0.1:0\n--metrics_address=127.0.0.1:0\n",
                                 "--backend=cpu\n--cpu_threads=2\n", "--port_file=", Path("ports"),
                                 "\n", more_flags))
                    .ok());
    Start("flashbias-server", {absl::StrCat("--flagfile=", Path("flags"))});
  }

  // A server program that writes its ports to Path("ports").
  void Start(const std::string& program, const std::vector<std::string>& arguments) {
    auto server = ChildProcess::Start(Program(program), arguments, Path("server.log"));
    ASSERT_TRUE(server.ok()) << server.status();
    server_.emplace(*std::move(server));
    const absl::Time give_up = absl::Now() + kPatience;
    while (!std::filesystem::exists(Path("ports"))) {
      ASSERT_TRUE(server_->Running()) << server_->Output();
      ASSERT_LT(absl::Now(), give_up) << server_->Output();
      absl::SleepFor(absl::Milliseconds(5));
    }
    const absl::StatusOr<std::string> ports = support::ReadFile(Path("ports"));
    ASSERT_TRUE(ports.ok());
    for (const std::string& line : std::vector<std::string>(absl::StrSplit(*ports, '\n'))) {
      const std::vector<std::string> words = absl::StrSplit(line, '=');
      int* const port = words[0] == "grpc_port"      ? &port_
                        : words[0] == "metrics_port" ? &metrics_port_
                                                     : nullptr;
      if (port != nullptr && !absl::SimpleAtoi(words.back(), port)) *port = 0;
    }
    ASSERT_GT(port_, 0) << *ports;
    ASSERT_GT(metrics_port_, 0) << *ports;
  }

  std::string Target() const { return absl::StrCat("127.0.0.1:", port_); }

  // The program's exit code; what it printed is in `output`.
  int Run(const std::string& name, const std::vector<std::string>& arguments, std::string* output) {
    auto child = ChildProcess::Start(Program(name), arguments, Path(name + ".log"));
    EXPECT_TRUE(child.ok()) << child.status();
    if (!child.ok()) return -1;
    const absl::StatusOr<int> code = child->Wait(kPatience);
    *output = child->Output();
    EXPECT_TRUE(code.ok()) << code.status();
    return code.ok() ? *code : -1;
  }

  void WriteTensor(const std::string& name, const std::vector<int64_t>& shape, const void* data,
                   int64_t elements) {
    const auto bytes = static_cast<size_t>(elements) * sizeof(float);
    const std::string_view view(static_cast<const char*>(data), bytes);
    ASSERT_TRUE(support::WriteFile(Path(name), support::EncodeNpy("<f4", shape, view)).ok());
  }

  std::string directory_;
  std::optional<ChildProcess> server_;
  int port_ = 0;
  int metrics_port_ = 0;
};

TEST_F(ProcessTest, SigtermDrainsAndExitsWithZero) {
  StartServer();
  // Keys enough that calls are under way when the signal comes.
  AttentionCase c;
  c.num_q_heads = c.num_kv_heads = 16;
  c.head_dim = 64;
  c.eps = 0;
  // A sanitizer's arithmetic is a hundred times slower; the drain has to end within its grace.
  constexpr int64_t kLength = support::kSlowBuild ? 256 : 2048;
  c.sequences = {{.q_len = kLength, .kv_len = kLength}};
  auto client = AttentionClient::Create(
      {.target = Target(), .num_connections = 2, .retry = {.max_attempts = 1}});
  ASSERT_TRUE(client.ok()) << client.status();
  std::vector<std::thread> callers;
  std::atomic<int> answered{0};
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      OwnedProblem owned = Materialise(c);
      const absl::StatusOr<AttendResult> result = AttendRemotely(**client, &owned);
      if (result.ok()) {
        EXPECT_TRUE(support::MatchesReference(owned, 0, support::kDefaultBudget / 10));
        ++answered;
      } else {
        EXPECT_TRUE(absl::IsUnavailable(result.status())) << result.status();
        EXPECT_THAT(std::string(result.status().message()), HasSubstr("draining"));
      }
    });
  }
  // Every message is there; whether its request was accepted or refused, its caller is told so.
  const absl::Time give_up = absl::Now() + kPatience;
  while (absl::Now() < give_up) {
    absl::StatusOr<Samples> samples = Scrape(metrics_port_);
    if (samples.ok() && (*samples)["flashbias_batch_requests_count"] >= 1 &&
        (*samples)["flashbias_stage_duration_seconds_count{stage=\"receive\"}"] == 3) {
      break;
    }
  }
  server_->Signal(SIGTERM);
  const absl::StatusOr<int> code = server_->Wait(kPatience);
  for (std::thread& caller : callers) caller.join();
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 0) << server_->Output();
  EXPECT_GE(answered, 1) << "the batch that ran when the signal came was lost";
  EXPECT_THAT(server_->Output(), HasSubstr("drain"));
}

// So that whoever runs it starts another one.
TEST_F(ProcessTest, TheLastDevicesFailureEndsTheServerWithOne) {
  Start("breaking_server", {Path("ports")});
  auto client = AttentionClient::Create({.target = Target(), .retry = {.max_attempts = 1}});
  ASSERT_TRUE(client.ok()) << client.status();
  AttentionCase c;
  OwnedProblem owned = Materialise(c);
  const absl::StatusOr<AttendResult> result = AttendRemotely(**client, &owned);
  EXPECT_TRUE(absl::IsInternal(result.status())) << result.status();
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("the device is broken"));
  const absl::StatusOr<int> code = server_->Wait(kPatience);
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 1) << server_->Output();
  EXPECT_THAT(server_->Output(), HasSubstr("no device left"));
}

TEST_F(ProcessTest, AnIdleServerEndsAtOnce) {
  StartServer();
  server_->Signal(SIGINT);
  const absl::StatusOr<int> code = server_->Wait(kPatience);
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 0) << server_->Output();
}

TEST_F(ProcessTest, WrongFlagsEndTheServerWithAMessage) {
  std::string output;
  const std::string nowhere = "--listen_address=127.0.0.1:0";
  EXPECT_EQ(Run("flashbias-server", {nowhere, "--max_queue_requests=-5"}, &output), 2);
  EXPECT_THAT(output, HasSubstr("max_queue_requests is -5; accepted: 1 to"));
  EXPECT_EQ(Run("flashbias-server", {nowhere, "--cpu_threads=-3"}, &output), 2);
  EXPECT_THAT(output, HasSubstr("cpu_threads is -3; accepted: 0 "));
  EXPECT_EQ(Run("flashbias-server", {nowhere, "--backend=abacus"}, &output), 2);
  EXPECT_THAT(output, HasSubstr("backend is 'abacus'"));
  EXPECT_EQ(Run("flashbias-server", {nowhere, "words"}, &output), 2);
  EXPECT_THAT(output, HasSubstr("'words' is no flag"));
  // These two abseil refuses itself.
  EXPECT_EQ(Run("flashbias-server", {"--no_such_flag=1"}, &output), 1);
  EXPECT_THAT(output, HasSubstr("no_such_flag"));
  EXPECT_EQ(Run("flashbias-server", {"--max_queue_requests=many"}, &output), 1);
  EXPECT_THAT(output, HasSubstr("max_queue_requests"));
}

TEST_F(ProcessTest, WhatItCannotDoEndsTheServerWithTheReason) {
  std::string output;
  EXPECT_EQ(Run("flashbias-server",
                {"--listen_address=127.0.0.1:0", "--metrics_address=", "--backend=cpu",
                 "--port_file=" + Path("no_such_directory/ports")},
                &output),
            1);
  EXPECT_THAT(output, HasSubstr("No such file or directory"));
}

TEST_F(ProcessTest, HelpShowsTheFlags) {
  std::string output;
  EXPECT_EQ(Run("flashbias-server", {"--help"}, &output), 0);
  EXPECT_THAT(output, HasSubstr("--max_queue_bytes"));
  EXPECT_THAT(output, HasSubstr("--listen_address"));
}

TEST_F(ProcessTest, VersionIsPrinted) {
  std::string output;
  EXPECT_EQ(Run("flashbias-server", {"--version"}, &output), 0);
  EXPECT_THAT(output, HasSubstr("flashbias-server "));
}

TEST_F(ProcessTest, HealthCheckOfAServerThatServes) {
  StartServer();
  std::string output;
  // With the server's own flags, and with its address alone.
  EXPECT_EQ(Run("flashbias-server", {absl::StrCat("--flagfile=", Path("flags")), "--health_check"},
                &output),
            0);
  EXPECT_EQ(output, "");
  EXPECT_EQ(Run("flashbias-server",
                {absl::StrCat("--listen_address=0.0.0.0:", port_), "--health_check"}, &output),
            0);
  EXPECT_EQ(output, "");
}

TEST_F(ProcessTest, HealthCheckOverTheUnixSocket) {
  // In /tmp: the path of a socket may be 107 bytes long.
  const std::string socket = absl::StrCat("/tmp/flashbias_health_", getpid());
  StartServer(absl::StrCat("--listen_unix=", socket, "\n"));
  std::string output;
  EXPECT_EQ(Run("flashbias-server",
                {"--listen_address=127.0.0.1:0", absl::StrCat("--listen_unix=", socket),
                 "--health_check"},
                &output),
            0)
      << output;
}

TEST_F(ProcessTest, HealthCheckOfNoServerSaysSoInOneLine) {
  std::string output;
  EXPECT_EQ(Run("flashbias-server", {"--listen_address=127.0.0.1:1", "--health_check"}, &output),
            1);
  EXPECT_THAT(output, HasSubstr("127.0.0.1:1: UNAVAILABLE"));
  EXPECT_EQ(std::count(output.begin(), output.end(), '\n'), 1) << output;
  EXPECT_EQ(
      Run("flashbias-server", {"--health_check", "--port_file=" + Path("no_such_file")}, &output),
      1);
  EXPECT_THAT(output, HasSubstr("no_such_file"));
  EXPECT_EQ(Run("flashbias-server", {"--health_check", "--listen_address=here"}, &output), 2);
  EXPECT_THAT(output, HasSubstr("listen_address is 'here'"));
}

TEST_F(ProcessTest, HealthCheckOfAServerThatDrains) {
  StartServer();
  // So much that it outlasts the check; the second signal cuts it short.
  AttentionCase c;
  c.num_q_heads = c.num_kv_heads = 16;
  c.head_dim = 64;
  c.eps = 0;
  constexpr int64_t kLength = support::kSlowBuild ? 2048 : 8192;
  c.sequences = {{.q_len = kLength, .kv_len = kLength}};
  auto client = AttentionClient::Create({.target = Target(), .retry = {.max_attempts = 1}});
  ASSERT_TRUE(client.ok()) << client.status();
  std::thread caller([&] {
    OwnedProblem owned = Materialise(c);
    (void)AttendRemotely(**client, &owned);
  });
  const absl::Time give_up = absl::Now() + kPatience;
  while (absl::Now() < give_up) {
    absl::StatusOr<Samples> samples = Scrape(metrics_port_);
    if (samples.ok() && (*samples)["flashbias_batch_requests_count"] >= 1) break;
  }
  server_->Signal(SIGTERM);
  // The signal takes a moment to arrive.
  std::string output;
  int code = 0;
  while (code == 0 && absl::Now() < give_up) {
    code = Run("flashbias-server", {absl::StrCat("--flagfile=", Path("flags")), "--health_check"},
               &output);
  }
  server_->Signal(SIGTERM);
  caller.join();
  EXPECT_EQ(code, 1);
  EXPECT_THAT(output, HasSubstr("NOT_SERVING"));
}

TEST_F(ProcessTest, PrintedConfigIsAFlagFile) {
  std::string printed;
  ASSERT_EQ(Run("flashbias-server",
                {"--print_config", "--listen_address=127.0.0.1:0", "--reflection=false",
                 "--max_queue_delay=1500us", "--max_queue_bytes=12345678", "--backend=cpu"},
                &printed),
            0)
      << printed;
  EXPECT_THAT(printed, HasSubstr("--max_queue_bytes=12345678\n"));
  EXPECT_THAT(printed, HasSubstr("--reflection=false\n"));
  ASSERT_TRUE(support::WriteFile(Path("printed"), printed).ok());
  std::string again;
  EXPECT_EQ(Run("flashbias-server", {"--flagfile=" + Path("printed"), "--print_config"}, &again),
            0);
  EXPECT_EQ(again, printed);
  EXPECT_EQ(Run("flashbias-server", {"--print_config", "--max_queue_requests=-5"}, &again), 2);
  EXPECT_THAT(again, HasSubstr("max_queue_requests is -5"));
  EXPECT_EQ(Run("flashbias-server", {"--print_config", "--health_check"}, &again), 2);
}

// Every flag is in the sample, as a comment with its default or set to it.
TEST_F(ProcessTest, TheSampleFlagFileNamesEveryFlagAndIsAccepted) {
  const std::string sample = FLASHBIAS_SOURCE_DIR "/deploy/flashbias-server.flags";
  std::string defaults;
  ASSERT_EQ(Run("flashbias-server", {"--print_config"}, &defaults), 0) << defaults;
  std::string with_sample;
  ASSERT_EQ(Run("flashbias-server", {"--flagfile=" + sample, "--print_config"}, &with_sample), 0)
      << with_sample;
  EXPECT_EQ(with_sample, defaults);
  const absl::StatusOr<std::string> text = support::ReadFile(sample);
  ASSERT_TRUE(text.ok()) << text.status();
  for (const absl::string_view line : absl::StrSplit(defaults, '\n', absl::SkipEmpty())) {
    EXPECT_THAT(*text, HasSubstr(absl::StrCat("\n#", line, "\n")));
  }
  // Uncommented, every line is a flag that the server takes.
  std::string all;
  for (const absl::string_view line : absl::StrSplit(*text, '\n')) {
    if (absl::StartsWith(line, "#--")) absl::StrAppend(&all, line.substr(1), "\n");
  }
  ASSERT_TRUE(support::WriteFile(Path("all"), all).ok());
  EXPECT_EQ(Run("flashbias-server", {"--flagfile=" + Path("all"), "--print_config"}, &with_sample),
            0);
  EXPECT_EQ(with_sample, defaults);
}

TEST_F(ProcessTest, CallComputesGoldenVectorsFromNpyFiles) {
  StartServer();
  auto cases = support::LoadGoldenCases();
  ASSERT_TRUE(cases.ok()) << cases.status();
  for (support::GoldenCase& golden : *cases) {
    SCOPED_TRACE(golden.name);
    const AttentionProblem& p = golden.owned.problem();
    WriteTensor("q.npy", {p.total_q, p.num_q_heads, p.head_dim}, p.q, golden.owned.q_elements());
    WriteTensor("k.npy", {p.total_kv, p.num_kv_heads, p.head_dim}, p.k, golden.owned.kv_elements());
    WriteTensor("v.npy", {p.total_kv, p.num_kv_heads, p.head_dim}, p.v, golden.owned.kv_elements());
    std::vector<std::string> arguments = {
        "--target=" + Target(),
        "--q=" + Path("q.npy"),
        "--k=" + Path("k.npy"),
        "--v=" + Path("v.npy"),
        "--out=" + Path("o.npy"),
        "--lse=" + Path("lse.npy"),
        p.mask.causal ? "--causal" : "--nocausal",
        absl::StrCat("--left_window=", p.mask.left_window),
        absl::StrCat("--query_start=", p.sequences[0].query_start),
        absl::StrCat("--key_start=", p.sequences[0].key_start),
        absl::StrFormat("--scale=%.9g", p.softmax_scale)};
    if (p.bias_kind == BiasKind::kAlibi) {
      WriteTensor("slopes.npy", {p.num_q_heads}, p.alibi.slopes, p.num_q_heads);
      arguments.push_back("--alibi=" + Path("slopes.npy"));
    } else if (p.bias_kind == BiasKind::kLowRank) {
      const LowRankBias& b = p.low_rank;
      WriteTensor("phi_q.npy", {p.total_q, b.phi_q_heads, b.rank}, b.phi_q,
                  golden.owned.phi_q_elements());
      WriteTensor("phi_k.npy", {p.total_kv, b.phi_k_heads, b.rank}, b.phi_k,
                  golden.owned.phi_k_elements());
      arguments.push_back("--phi_q=" + Path("phi_q.npy"));
      arguments.push_back("--phi_k=" + Path("phi_k.npy"));
    }
    std::string output;
    ASSERT_EQ(Run("flashbias-call", arguments, &output), 0) << output;
    const absl::StatusOr<NpyArray> o = support::ReadNpy(Path("o.npy"));
    const absl::StatusOr<NpyArray> lse = support::ReadNpy(Path("lse.npy"));
    ASSERT_TRUE(o.ok()) << o.status();
    ASSERT_TRUE(lse.ok()) << lse.status();
    EXPECT_EQ(o->descr, "<f4");
    ASSERT_EQ(o->shape, (std::vector<int64_t>{p.total_q, p.num_q_heads, p.head_dim}));
    ASSERT_EQ(lse->shape, (std::vector<int64_t>{p.total_q, p.num_q_heads}));
    for (size_t n = 0; n < o->values.size(); ++n) {
      StoreElement(DType::kFloat32, golden.owned.mutable_problem().o, static_cast<int64_t>(n),
                   static_cast<float>(o->values[n]));
    }
    for (size_t n = 0; n < lse->values.size(); ++n) {
      golden.owned.mutable_problem().lse[n] = static_cast<float>(lse->values[n]);
    }
    EXPECT_TRUE(support::MatchesGolden(golden));
  }
}

TEST_F(ProcessTest, CallSaysInOneLineWhatIsWrongWithAFile) {
  StartServer();
  const std::vector<float> values(2 * 2 * 4, 1.0f);
  WriteTensor("q.npy", {2, 2, 4}, values.data(), 16);
  ASSERT_TRUE(support::WriteFile(Path("text.npy"), "these are words").ok());
  ASSERT_TRUE(support::WriteFile(Path("int.npy"),
                                 support::EncodeNpy("<i4", {2, 2, 4}, std::string(64, '\0')))
                  .ok());
  for (const char* bad : {"text.npy", "int.npy", "missing.npy"}) {
    std::string output;
    EXPECT_NE(Run("flashbias-call",
                  {"--target=" + Target(), "--q=" + Path("q.npy"), "--k=" + Path(bad),
                   "--v=" + Path("q.npy"), "--out=" + Path("o.npy")},
                  &output),
              0)
        << bad;
    EXPECT_THAT(output, HasSubstr(bad));
    EXPECT_EQ(std::count(output.begin(), output.end(), '\n'), 1) << output;
    EXPECT_FALSE(std::filesystem::exists(Path("o.npy")));
  }
}

TEST_F(ProcessTest, CallHasADemo) {
  StartServer();
  std::string output;
  EXPECT_EQ(Run("flashbias-call", {"--target=" + Target(), "--demo", "--demo_len=100"}, &output), 0)
      << output;
  EXPECT_THAT(output, HasSubstr("100"));
}

TEST_F(ProcessTest, LoadVerifiesItsAnswers) {
  StartServer();
  std::string output;
  EXPECT_EQ(Run("flashbias-load",
                {"--target=" + Target(), "--concurrency=4", "--connections=2", "--heads=8",
                 "--head_dim=32", "--seq_len=256", "--requests=40", "--warmup=0", "--verify=0.5",
                 "--json=" + Path("report.json")},
                &output),
            0)
      << output;
  const absl::StatusOr<std::string> report = support::ReadFile(Path("report.json"));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(*report, HasSubstr("p99"));
  absl::StatusOr<Samples> samples = Scrape(metrics_port_);
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_EQ((*samples)["flashbias_requests_total{code=\"OK\",method=\"Attend\",transport=\"tcp\"}"],
            40);
}

TEST_F(ProcessTest, LoadVerifiesGradientsToo) {
  StartServer();
  for (const char* direction : {"backward", "both"}) {
    std::string output;
    EXPECT_EQ(Run("flashbias-load",
                  {"--target=" + Target(), "--concurrency=4", "--heads=4", "--kv_heads=2",
                   "--seq_len=128", "--requests=20", "--warmup=0", "--verify=0.5",
                   "--bias_gradient", absl::StrCat("--direction=", direction)},
                  &output),
              0)
        << output;
    EXPECT_THAT(output, HasSubstr("of dq, dk and dv"));
  }
  absl::StatusOr<Samples> samples = Scrape(metrics_port_);
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_EQ((*samples)["flashbias_requests_total{code=\"OK\",method=\"AttendBackward\","
                       "transport=\"tcp\"}"],
            40);
}

TEST_F(ProcessTest, LoadFailsWhenNothingListens) {
  std::string output;
  EXPECT_NE(Run("flashbias-load",
                {"--target=127.0.0.1:1", "--requests=3", "--warmup=0", "--timeout=2s",
                 "--duration=5s", "--seq_len=16"},
                &output),
            0)
      << output;
}

}  // namespace
}  // namespace flashbias::integration
