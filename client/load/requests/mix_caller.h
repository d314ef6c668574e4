// Sends the requests of a mix to one or several servers, in turn.
//
// Thread-safety: all methods from any thread; the destructor is the last call, waits for what is in
// flight, and is not to be called from a DoneCallback. Ownership: the mix and the verifier must
// outlive it.
//
// With kSharedMemory each server shares one region with this process, which holds the inputs and a
// slot of results for each request in flight; the server reads and writes there. It may go on doing
// so after a call that it did not answer (a deadline, a lost connection), so that call's slot is
// not used again with that server: results of later requests in it come in messages.
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_MIX_CALLER_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_MIX_CALLER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "client/load/engine/load_caller.h"
#include "client/load/requests/request_mix.h"
#include "client/load/requests/verifier.h"

namespace flashbias::client {

enum class LoadTransport {
  kInline,        // in one message, over TCP or a unix socket
  kStream,        // in chunks
  kSharedMemory,  // inputs and results in regions; over a unix socket only
};
std::string Name(LoadTransport transport);  // "inline", "stream", "shared_memory"

struct MixCallerOptions {
  // One for each target; `target` differs and nothing else. At least one. Their retry policies
  // count: with max_attempts above 1 a request may be several.
  std::vector<AttentionClient::Options> clients = {};
  LoadTransport transport = LoadTransport::kInline;
  int slots = 1;                               // bound of requests in flight
  absl::Duration timeout = absl::Seconds(60);  // of each call
  // Of the answers, 0 to 1. Spread evenly over the requests' numbers, and request 0 is among them.
  double verify_share = 0;
  uint64_t seed = 1;  // of which answers are verified
};

class MixCaller : public LoadCaller {
 public:
  // Connects, asks every server what it is, makes the regions of kSharedMemory, and the forward
  // calls whose gradients are the load's. Blocks meanwhile. INVALID_ARGUMENT naming the flag: an
  // option is out of its range; other errors name the target. `verifier` may be null when
  // verify_share is 0.
  static absl::StatusOr<std::unique_ptr<MixCaller>> Create(const MixCallerOptions& options,
                                                           const RequestMix* mix,
                                                           const Verifier* verifier);

  ~MixCaller() override;
  MixCaller(const MixCaller&) = delete;
  MixCaller& operator=(const MixCaller&) = delete;

  // Request `index` is the mix's, goes to target index % num_targets(), and takes `slot` below
  // MixCallerOptions::slots. Where there are several targets, messages of errors name the one.
  int num_entries() const override;
  int num_targets() const override;
  void Start(int64_t index, int slot, DoneCallback done) override;

  const std::vector<ServerInfo>& servers() const;  // [targets]

 private:
  class Impl;
  explicit MixCaller(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_MIX_CALLER_H_
