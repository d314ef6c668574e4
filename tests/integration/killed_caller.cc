// A caller that makes one call after the other until it is killed.
//
//   killed_caller KIND TARGET ROWS [answer]
//
//   KIND     inline, stream or shared, or backward_ and one of these
//   answer   it kills itself when the first part of its third answer is there
//
// Prints "calling N" once its second answer has come, which took N microseconds.
//
// For killed_callers_test: what a killed caller leaves in the server.
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "tests/integration/call_kind.h"

namespace flashbias::integration {
namespace {

// Kills the process when a byte of the answer is written over.
void DieWithTheAnswer(KindOfCaller& caller) {
  constexpr char kUnwritten = 0x7f;  // in every byte: NaN, which no answer has
  const std::atomic_ref<char> first(*caller.mutable_answer());
  first = kUnwritten;
  std::thread([first] {
    while (first == kUnwritten) {
    }
    kill(getpid(), SIGKILL);
  }).detach();
}

int Main(const std::string& kind, const std::string& target, int64_t rows, bool dies) {
  auto caller = KindOfCaller::Create(kind, target, rows);
  if (!caller.ok()) {
    std::fprintf(stderr, "%s\n", caller.status().ToString().c_str());
    return 1;
  }
  for (int64_t calls = 1;; ++calls) {
    const absl::Time start = absl::Now();
    if (const absl::Status called = (*caller)->Call(); !called.ok()) {
      std::fprintf(stderr, "%s\n", called.ToString().c_str());
      return 1;
    }
    if (calls != 2) continue;
    std::printf("calling %lld\n",
                static_cast<long long>(absl::ToInt64Microseconds(absl::Now() - start)));
    std::fflush(stdout);
    if (dies) DieWithTheAnswer(**caller);
  }
}

}  // namespace
}  // namespace flashbias::integration

int main(int argc, char** argv) {
  int64_t rows = 0;
  const bool dies = argc == 5 && std::string(argv[4]) == "answer";
  if (argc != (dies ? 5 : 4) || !absl::SimpleAtoi(argv[3], &rows) || rows < 1) return 2;
  return flashbias::integration::Main(argv[1], argv[2], rows, dies);
}
