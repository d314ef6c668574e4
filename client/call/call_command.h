// What flashbias-call does: one attention call on .npy files, or on made-up input, and where the
// gradient of its answer is given its backward call.
//
// Thread-safety: plain value and functions without shared state.
#ifndef FLASHBIAS_CLIENT_CALL_CALL_COMMAND_H_
#define FLASHBIAS_CLIENT_CALL_CALL_COMMAND_H_

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "kernels/dtype.h"

namespace flashbias::client {

struct CallCommand {
  AttentionClient::Options client = {};  // its max_message_bytes is not used: it is the largest
  bool demo = false;  // 1 x 50 heads x 32, seed slopes, causal, float16, standard normal
  int64_t demo_len = 1024;
  uint64_t demo_seed = 1;
  std::string q = {}, k = {}, v = {};   // paths; [n, heads, head_dim]
  std::optional<DType> dtype = {};      // of the wire; absent: that of the files
  std::string alibi = {};               // "": none; "standard", "seed", or a path: [heads] or
                                        // [num_sequences, heads]
  std::string phi_q = {}, phi_k = {};   // paths; both or none; [n, heads or 1, rank]
  std::optional<DType> phi_dtype = {};  // of the wire; absent: that of the files
  bool causal = true;
  int64_t left_window = 0;
  std::vector<int64_t> query_start = {}, key_start = {};  // one per sequence, or empty
  std::vector<int64_t> q_lens = {}, kv_lens = {};         // both or none
  std::optional<float> scale = {};
  std::optional<float> eps = {};
  // Paths are opened before the call is made.
  std::string out = {};  // path for o; "": not written
  std::string lse = {};  // path for lse; "": not asked for
  std::string d_o = {};  // path of the gradient of o; "": no backward call
  // Paths for gradients; "": not written. Those of the bias need the bias.
  std::string dq = {}, dk = {}, dv = {};
  std::string dslopes = {}, dphi_q = {}, dphi_k = {};
  absl::Duration timeout = absl::Seconds(60);
  bool print = false;  // shape, timing, first values; always with demo, or with nothing to write
};

// INVALID_ARGUMENT: flags that are missing, out of range or exclude each other; no file was opened.
absl::Status CheckCallCommand(const CallCommand& command);

// REQUIRES: CheckCallCommand is OK. Prints to `out` what the command asks to print.
absl::Status RunCallCommand(const CallCommand& command, std::ostream& out);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_CALL_CALL_COMMAND_H_
