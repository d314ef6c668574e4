// A connection to an attention server.
//
//   auto client = AttentionClient::Create({.target = "localhost:8471"});
//   absl::StatusOr<AttendResult> result = (*client)->Attend(request);
//   absl::StatusOr<AttendGradients> gradients = (*client)->AttendBackward(
//       {.forward = request, .o = ..., .lse = result->lse, .d_o = ...});
//
// Thread-safety: every method may be called from any thread at any time; the destructor must be the
// last call. Ownership: calls read what the request's views point at, without a copy; it must live
// unchanged until the call returns or, of the Async methods, its callback runs, and is no longer
// read then. The request itself may go at once. For memory in a region see
// client/shared_region.h, on a GPU client/device_region.h.
//
// Large requests and answers are streamed in chunks, with no other difference than this: once the
// server has accepted one, UNAVAILABLE is final too, and a call that fails may have written a part
// of its answer to the buffers of CallOptions.
//
// Errors: what a server says comes back with its code and message. Made by the client itself:
//
// - INVALID_ARGUMENT: a field is wrong; the message names it, what came and what is accepted.
//   Nothing was sent.
// - UNAVAILABLE: no server could be connected to, or it ended the call while it shut down. With TLS
//   also where the handshake failed; the message says why, save where a server refuses the client's
//   certificate: then it may say only that the connection was closed.
// - RESOURCE_EXHAUSTED: the request without its tensors is larger than max_message_bytes, or that
//   is too small to stream. Nothing was sent.
// - CANCELLED: by the caller's Cancellation, or by the client's destruction.
// - INTERNAL: the server's answer does not fit the request.
#ifndef FLASHBIAS_CLIENT_ATTENTION_CLIENT_H_
#define FLASHBIAS_CLIENT_ATTENTION_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/attention_types.h"
#include "client/cancellation.h"
#include "client/device_region.h"
#include "client/retry_policy.h"
#include "client/shared_region.h"
#include "client/tls_options.h"

namespace flashbias::client {

struct CallOptions {
  // From the start of the call to its end, retries included. Zero: the client's default_timeout.
  // Refused: negative.
  absl::Duration timeout = absl::ZeroDuration();
  // The earlier of deadline and timeout counts. With a deadline and no timeout, default_timeout
  // does not apply.
  absl::Time deadline = absl::InfiniteFuture();
  // Where the answer goes: of Attend, and of AttendBackward. The other is refused. The memory is
  // the call's until it returns or the callback runs.
  ResultBuffers result = {};
  GradientBuffers gradients = {};
  // Null: the call cannot be cancelled (but by destroying the client).
  std::shared_ptr<Cancellation> cancellation = {};
};

// Which of the addresses that a target resolves to calls go to.
enum class LoadBalancing {
  kPickFirst,   // all calls to the first that answers, until it breaks
  kRoundRobin,  // calls in turn to each address that is connected
};

class AttentionClient {
 public:
  struct Options {
    // "host:port", "dns:///host:port", "ipv4:ADDRESS:port,ADDRESS:port", "unix:PATH"; not empty.
    std::string target = {};
    // Connections, each call takes one that carries the fewest; with kRoundRobin that many to each
    // address. Accepted: 1 to 256.
    int num_connections = 1;
    // Of calls that give neither timeout nor deadline; positive, InfiniteDuration() for none.
    absl::Duration default_timeout = absl::Seconds(60);
    RetryPolicy retry = {};
    // Of one message. Larger requests and answers travel in chunks. Accepted: 1 to 2^31 - 1; below
    // 1024 nothing can be streamed.
    int64_t max_message_bytes = int64_t{1} << 30;
    // A call whose request or answer has more bytes of tensors than this is streamed, even where it
    // would fit a message; keep it below the server's --max_message_bytes. 0 or more.
    int64_t stream_above_bytes = int64_t{256} << 20;
    // Put before gRPC's own. Empty: "flashbias-client/<version>".
    std::string user_agent = {};
    LoadBalancing load_balancing = LoadBalancing::kPickFirst;
    // Absent: connections are plain text.
    std::optional<TlsOptions> tls = {};
    // Sent with each attempt of each call as "authorization: Bearer ...". Letters, digits, -._~+/
    // and then = (RFC 6750's b64token); empty: none. Refused without tls, unless the target is
    // "unix:PATH", localhost, 127.0.0.0/8 or [::1]; then no HTTP proxy is used either.
    std::string bearer_token = {};
  };

  // Called exactly once.
  using AttendCallback = absl::AnyInvocable<void(absl::StatusOr<AttendResult>) &&>;
  using AttendBackwardCallback = absl::AnyInvocable<void(absl::StatusOr<AttendGradients>) &&>;

  // Connections are made by the first calls, so a server that is not there shows as UNAVAILABLE
  // from a call. INVALID_ARGUMENT: an option is out of its range.
  static absl::StatusOr<std::unique_ptr<AttentionClient>> Create(Options options);

  // Cancels the calls in flight and waits until their callbacks have returned. Not to be called
  // from a callback.
  ~AttentionClient();
  AttentionClient(const AttentionClient&) = delete;
  AttentionClient& operator=(const AttentionClient&) = delete;

  // Blocks until the answer is there. Not to be called from a callback.
  absl::StatusOr<AttendResult> Attend(const AttendRequest& request,
                                      const CallOptions& options = {});

  // Returns once the request is on its way. `callback` runs on a thread of the library and must not
  // block; when the call ends without anything being sent it may run before AttendAsync returns.
  void AttendAsync(const AttendRequest& request, const CallOptions& options,
                   AttendCallback callback);

  // The gradients of a forward call: as Attend and AttendAsync in everything.
  absl::StatusOr<AttendGradients> AttendBackward(const AttendBackwardRequest& request,
                                                 const CallOptions& options = {});
  void AttendBackwardAsync(const AttendBackwardRequest& request, const CallOptions& options,
                           AttendBackwardCallback callback);

  // Memory shared with the server (client/shared_region.h). Blocks, at most for the client's
  // default_timeout. INVALID_ARGUMENT: the target is no "unix:PATH", or `bytes` is 0; UNAVAILABLE:
  // nobody answers there or shared memory is off; RESOURCE_EXHAUSTED: a limit, which is named.
  absl::StatusOr<std::unique_ptr<SharedRegion>> CreateRegion(size_t bytes);

  // Memory of this process on a GPU, for the server to use (client/device_region.h). Blocks as
  // CreateRegion. INVALID_ARGUMENT: the target is no "unix:PATH", or what is wrong with `memory`;
  // FAILED_PRECONDITION: the server computes on no GPU; UNAVAILABLE and RESOURCE_EXHAUSTED as
  // there.
  absl::StatusOr<std::unique_ptr<DeviceRegion>> RegisterDeviceMemory(
      const DeviceMemoryView& memory);

  // What the server is and what it accepts. Blocks; retried as Attend is. Not to be called from a
  // callback.
  absl::StatusOr<ServerInfo> GetServerInfo(const CallOptions& options = {});

 private:
  class Impl;
  explicit AttentionClient(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_ATTENTION_CLIENT_H_
