// The programs as a shell sees them: exit codes and what they say. No server is called.
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;

struct Ended {
  int exit_code = -1;
  std::string output = {};  // stdout and stderr
};

Ended RunProgram(const std::string& command_line) {
  Ended ended;
  std::FILE* const pipe = popen((command_line + " 2>&1 </dev/null").c_str(), "r");
  if (pipe == nullptr) return ended;
  std::array<char, 4096> buffer;
  while (const size_t got = fread(buffer.data(), 1, buffer.size(), pipe)) {
    ended.output.append(buffer.data(), got);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ended.exit_code = WEXITSTATUS(status);
  return ended;
}

struct Wrong {
  const char* arguments;
  const char* message;
};

TEST(ProgramsTest, LoadEndsWith2WhenTheCommandLineIsWrong) {
  for (const Wrong& wrong :
       {Wrong{"--heads=0", "--heads is 0; accepted: 1 to 65536"},
        Wrong{"--connections=0", "--connections is 0; accepted: 1 to 256"},
        Wrong{"--alibi=x", "--alibi is 'x'; accepted: standard, seed, none"},
        Wrong{"--kv_heads=3 --heads=4", "--kv_heads is 3; accepted: divisors of --heads, 4"},
        Wrong{"--eps=1", "--eps is 1; accepted: 0 to 2^-8"},
        Wrong{"--target=",
              "--target is empty or has an empty part; accepted: host:port or unix:PATH"},
        Wrong{"--max_message_bytes=0", "--max_message_bytes is 0; accepted: 1 to 2147483647"},
        Wrong{"--duration=0", "--duration is 0; accepted: positive durations"},
        Wrong{"--duration=inf", "--duration is inf; accepted only with --requests"},
        Wrong{"--requests=-5", "--requests is -5; accepted: 0 (no limit) and above"},
        Wrong{"--warmup=-1s", "--warmup is -1s; accepted: durations from 0"},
        Wrong{"--warmup_requests=-1", "--warmup_requests is -1; accepted"},
        Wrong{"--timeout=-2s", "--timeout is -2s; accepted: positive durations"},
        Wrong{"--dtype=float64", "--dtype is 'float64'; accepted"},
        Wrong{"--target=a:1,,b:2", "--target is empty or has an empty part"},
        Wrong{"--transport=udp", "--transport is 'udp'; accepted: inline, stream, shared_memory"},
        Wrong{"--transport=shared_memory", "accepted with --transport=shared_memory: unix:PATH"},
        Wrong{"--csv=-", "--csv is '-'; accepted: a file"},
        Wrong{"--html=-", "--html is '-'; accepted: a file"},
        Wrong{"--json=x --hdr=x", "--hdr is 'x', as is --json; accepted: another file"},
        Wrong{"--rate=-1", "--rate is -1; accepted: 0 to 1e+06"},
        Wrong{"--rate=nan", "--rate is nan; accepted: 0 to 1e+06"},
        Wrong{"--rate=5 --concurrency=2", "--concurrency is 2; accepted only in a closed loop"},
        Wrong{"--rate=5 --warmup_requests=2", "--warmup_requests is set; accepted only with"},
        Wrong{"--arrivals=bursts", "--arrivals is 'bursts'; accepted: poisson, constant"},
        Wrong{"--concurrency=0", "--concurrency is 0; accepted: 1 to 1024"},
        Wrong{"--max_outstanding=0", "--max_outstanding is 0; accepted: 1 to 65536"},
        Wrong{"--sweep", "--slo is 0; accepted: positive durations"},
        Wrong{"--slo=1s", "--slo is set; accepted only with --sweep"},
        Wrong{"--max_rate=5", "--max_rate is set; accepted only with --sweep"},
        Wrong{"--spin=1ms", "--spin is set; accepted only with an open loop"},
        Wrong{"--rate=5 --trace_speed=2", "--trace_speed is set; accepted only with the times"},
        Wrong{"--sweep --slo=1s --requests=5", "--requests is set; accepted: not with --sweep"},
        Wrong{"--sweep --slo=1s --sweep_step=1", "--sweep_step is 1; accepted: 1.01 to 10"},
        Wrong{"--mix=/nonexistent/mix", "--mix is '/nonexistent/mix'; accepted: a file"},
        Wrong{"--mix=a --trace=b", "--mix and --trace are both set; accepted: one of them"},
        Wrong{"--metrics=a:1,b:2", "--metrics names 2 addresses; accepted: one for each of the 1"},
        Wrong{"--verify --direction=both --eps=0.001", "eps is 0.001; accepted"},
        Wrong{"--token_file=/nonexistent/token", "--token_file: /nonexistent/token"}}) {
    const Ended ended = RunProgram(std::string(FLASHBIAS_LOAD " ") + wrong.arguments);
    EXPECT_EQ(ended.exit_code, 2) << wrong.arguments;
    EXPECT_THAT(ended.output, HasSubstr(wrong.message));
  }
}

TEST(ProgramsTest, CallEndsWith2WhenTheCommandLineIsWrong) {
  for (const Wrong& wrong :
       {Wrong{"--demo --target=", "--target is empty; accepted: host:port"},
        Wrong{"--demo --timeout=0", "--timeout is 0; accepted"},
        Wrong{"--demo --eps=1", "--eps is 1; accepted: 0 to 2^-8"},
        Wrong{"--demo --alibi=standart", "--alibi is 'standart'; accepted"},
        Wrong{"--phi_dtype=x", "--phi_dtype is 'x'; accepted: auto"},
        Wrong{"--demo --tls_ca_file=x", "--tls_ca_file is given without --tls"},
        Wrong{"--demo --tls --tls_ca_file=/nowhere/ca.pem",
              "--tls_ca_file: /nowhere/ca.pem: cannot read"},
        Wrong{"--demo --target=10.0.0.1:1 --token_file=/nowhere/token",
              "--token_file is given without --tls for the target"},
        Wrong{"--demo --load_balancing=x", "--load_balancing is 'x'; accepted"},
        Wrong{"", "--q is missing"}}) {
    const Ended ended = RunProgram(std::string(FLASHBIAS_CALL " ") + wrong.arguments);
    EXPECT_EQ(ended.exit_code, 2) << wrong.arguments;
    EXPECT_THAT(ended.output, HasSubstr(wrong.message));
  }
}

TEST(ProgramsTest, HelpShowsTheFlagsOfTheConnectionAfterTheProgramsOwn) {
  const Ended ended = RunProgram(FLASHBIAS_CALL " --help");
  EXPECT_EQ(ended.exit_code, 0);
  const size_t heading = ended.output.find("\nThe connection:\n");
  ASSERT_NE(heading, std::string::npos);
  EXPECT_LT(ended.output.find("--target"), heading);
  EXPECT_GT(ended.output.find("--tls_ca_file"), heading);
}

TEST(ProgramsTest, LoadOpensItsReportBeforeItConnects) {
  const Ended ended =
      RunProgram(FLASHBIAS_LOAD " --target=127.0.0.1:1 --seq_len=4 --json=/nowhere/r");
  EXPECT_EQ(ended.exit_code, 1);
  EXPECT_THAT(ended.output, HasSubstr("/nowhere/r: cannot write"));
}

}  // namespace
}  // namespace flashbias::client
