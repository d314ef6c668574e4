// flashbias-call: one attention call on .npy files. Flags and wiring only.
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "client/call/call_command.h"
#include "client/flags/command_line.h"
#include "client/flags/connection_flags.h"
#include "client/flags/dtype_flag.h"

using List = std::vector<std::string>;

ABSL_FLAG(std::string, target, "localhost:8471",
          "server: host:port, unix:PATH, or ipv4:ADDRESS:port,ADDRESS:port for several");
ABSL_FLAG(std::string, q, "", ".npy file of q, [total_q, heads, head_dim]");
ABSL_FLAG(std::string, k, "", ".npy file of k, [total_kv, kv_heads, head_dim]");
ABSL_FLAG(std::string, v, "", ".npy file of v, [total_kv, kv_heads, head_dim]");
ABSL_FLAG(std::string, dtype, "auto",
          "what q, k and v are sent as: auto (as the files are), float16, bfloat16, float32");
ABSL_FLAG(std::string, alibi, "",
          "ALiBi slopes: standard (Press et al.), seed (2^(-8k/H)), or a .npy file of [heads] or "
          "[num_sequences, heads]; empty: none");
ABSL_FLAG(std::string, phi_q, "", ".npy file of a low-rank bias, [total_q, heads or 1, rank]");
ABSL_FLAG(std::string, phi_k, "", ".npy file of a low-rank bias, [total_kv, heads or 1, rank]");
ABSL_FLAG(std::string, phi_dtype, "auto",
          "what phi_q and phi_k are sent as: auto (as the files are), float16, bfloat16, float32");
ABSL_FLAG(bool, causal, true, "a query sees keys up to its own position; --nocausal: every key");
ABSL_FLAG(int64_t, left_window, 0, "a query sees only keys nearer than this; 0: no window");
ABSL_FLAG(List, query_start, {}, "position of each sequence's first query; empty: aligned to end");
ABSL_FLAG(List, key_start, {}, "position of each sequence's first key; empty: 0");
ABSL_FLAG(absl::optional<float>, scale, absl::nullopt, "softmax scale; empty: 1/sqrt(head_dim)");
ABSL_FLAG(absl::optional<float>, eps, absl::nullopt,
          "largest share of softmax mass that skipping may drop; empty: 2^-24, 0: skip nothing");
ABSL_FLAG(List, q_lens, {}, "rows of each sequence in q; empty: one sequence");
ABSL_FLAG(List, kv_lens, {}, "rows of each sequence in k and v; empty: one sequence");
ABSL_FLAG(std::string, out, "", ".npy file to write o to (bfloat16 is written as float32)");
ABSL_FLAG(std::string, lse, "", ".npy file to write the log-sum-exp to");
ABSL_FLAG(std::string, d_o, "",
          ".npy file of the gradient of o, as o: the call is followed by its backward call");
ABSL_FLAG(std::string, dq, "", ".npy file to write the gradient of q to");
ABSL_FLAG(std::string, dk, "", ".npy file to write the gradient of k to");
ABSL_FLAG(std::string, dv, "", ".npy file to write the gradient of v to");
ABSL_FLAG(std::string, dslopes, "", ".npy file to write the gradient of the slopes to");
ABSL_FLAG(std::string, dphi_q, "", ".npy file to write the gradient of phi_q to");
ABSL_FLAG(std::string, dphi_k, "", ".npy file to write the gradient of phi_k to");
ABSL_FLAG(absl::Duration, timeout, absl::Seconds(60), "of each call, retries included");
ABSL_FLAG(bool, print, false,
          "print shape, timing and the first values; always with --demo, or with nothing to write");
ABSL_FLAG(bool, demo, false, "make the input: 50 heads x 32, causal, seed slopes, standard normal");
ABSL_FLAG(int64_t, demo_len, 1024, "tokens of --demo");
ABSL_FLAG(uint64_t, demo_seed, 1, "seed of --demo");

namespace flashbias::client {
namespace {

absl::Status Integers(const char* name, const List& texts, std::vector<int64_t>* values) {
  for (const std::string& text : texts) {
    int64_t value = 0;
    if (!absl::SimpleAtoi(text, &value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, ": '", text, "' is no integer; accepted: 12,34,56"));
    }
    values->push_back(value);
  }
  return absl::OkStatus();
}

absl::StatusOr<CallCommand> CommandFromFlags() {
  CallCommand command{.client = {.target = absl::GetFlag(FLAGS_target)},
                      .demo = absl::GetFlag(FLAGS_demo),
                      .demo_len = absl::GetFlag(FLAGS_demo_len),
                      .demo_seed = absl::GetFlag(FLAGS_demo_seed),
                      .q = absl::GetFlag(FLAGS_q),
                      .k = absl::GetFlag(FLAGS_k),
                      .v = absl::GetFlag(FLAGS_v),
                      .alibi = absl::GetFlag(FLAGS_alibi),
                      .phi_q = absl::GetFlag(FLAGS_phi_q),
                      .phi_k = absl::GetFlag(FLAGS_phi_k),
                      .causal = absl::GetFlag(FLAGS_causal),
                      .left_window = absl::GetFlag(FLAGS_left_window),
                      .out = absl::GetFlag(FLAGS_out),
                      .lse = absl::GetFlag(FLAGS_lse),
                      .d_o = absl::GetFlag(FLAGS_d_o),
                      .dq = absl::GetFlag(FLAGS_dq),
                      .dk = absl::GetFlag(FLAGS_dk),
                      .dv = absl::GetFlag(FLAGS_dv),
                      .dslopes = absl::GetFlag(FLAGS_dslopes),
                      .dphi_q = absl::GetFlag(FLAGS_dphi_q),
                      .dphi_k = absl::GetFlag(FLAGS_dphi_k),
                      .timeout = absl::GetFlag(FLAGS_timeout),
                      .print = absl::GetFlag(FLAGS_print)};
  if (const auto scale = absl::GetFlag(FLAGS_scale); scale.has_value()) command.scale = *scale;
  if (const auto eps = absl::GetFlag(FLAGS_eps); eps.has_value()) command.eps = *eps;
  for (const auto& [name, text, dtype] :
       {std::tuple{"dtype", absl::GetFlag(FLAGS_dtype), &command.dtype},
        std::tuple{"phi_dtype", absl::GetFlag(FLAGS_phi_dtype), &command.phi_dtype}}) {
    if (text == "auto") continue;
    *dtype = DTypeFromName(text);
    if (!dtype->has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, " is '", text, "'; accepted: auto, float16, bfloat16, float32"));
    }
  }
  for (const auto& [name, texts, values] :
       {std::tuple{"query_start", absl::GetFlag(FLAGS_query_start), &command.query_start},
        std::tuple{"key_start", absl::GetFlag(FLAGS_key_start), &command.key_start},
        std::tuple{"q_lens", absl::GetFlag(FLAGS_q_lens), &command.q_lens},
        std::tuple{"kv_lens", absl::GetFlag(FLAGS_kv_lens), &command.kv_lens}}) {
    if (absl::Status status = Integers(name, texts, values); !status.ok()) return status;
  }
  if (absl::Status status = CheckCallCommand(command); !status.ok()) return status;
  if (auto status = ConnectionOptionsFromFlags(&command.client); !status.ok()) return status;
  return command;
}

int Fail(const absl::Status& status, int exit_code) {
  std::cerr << ErrorLine("flashbias-call", status) << "\n";
  return exit_code;
}

int Main(absl::Span<const char* const> arguments) {
  const absl::StatusOr<CommandLine> line = ParseFlags(arguments);
  if (!line.ok()) return Fail(line.status(), 2);
  if (line->help) {
    std::cout << HelpText(
                     "flashbias-call --q=q.npy --k=k.npy --v=v.npy --alibi=seed --out=o.npy\n"
                     "flashbias-call --demo\n",
                     "client/call/")
              << ConnectionFlagsHelp();
    return 0;
  }
  const absl::StatusOr<CallCommand> command = CommandFromFlags();
  if (!command.ok()) return Fail(command.status(), 2);
  const absl::Status status = RunCallCommand(*command, std::cout);
  return status.ok() ? 0 : Fail(status, 1);
}

}  // namespace
}  // namespace flashbias::client

int main(int argc, char** argv) {
  // Debian's gRPC carries abseil's deadlock detector switched on; it slows every lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return flashbias::client::Main({argv + 1, static_cast<size_t>(argc > 0 ? argc - 1 : 0)});
}
