// The client's half of the subjects that call the service: requests over tensors that lie wherever
// the subject has put them.
//
// Thread-safety: as TransportSubject; the rest before the first call.
#ifndef FLASHBIAS_TESTS_BENCH_SERVICE_CALLER_H_
#define FLASHBIAS_TESTS_BENCH_SERVICE_CALLER_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/attention_client.h"
#include "tests/bench/transport_subject.h"

namespace flashbias::bench {

class ServiceCaller {
 public:
  explicit ServiceCaller(const TransportSetup& setup);

  absl::Status Connect(const std::string& target);
  client::AttentionClient& client() { return *client_; }

  size_t tensor_bytes() const { return bytes_; }  // of each tensor but lse
  // Tensors that need values: q, k, v and, where there are backward calls, d_o. They come first.
  size_t num_inputs() const { return setup_.calls == Calls::kForward ? 3 : 4; }
  // Of these and, for each lane, of the results: o, or o, dq, dk, dv and lse.
  size_t total_bytes() const {
    return num_inputs() * bytes_ + static_cast<size_t>(setup_.lanes) * lane_bytes();
  }
  // That many bytes, which stay the subject's, and the forward call that backward ones are of.
  absl::Status SetTensors(char* tensors);
  // Bytes of tensors in and out, of one call of the subject.
  static int64_t BytesMoved(Calls calls, int64_t tokens);

  // As TransportSubject::Call.
  absl::Status Call(int lane, std::optional<ServerTime>* time);

 private:
  size_t lse_bytes() const { return static_cast<size_t>(setup_.tokens * kHeads) * sizeof(float); }
  size_t lane_bytes() const {
    return setup_.calls == Calls::kForward ? bytes_ : 4 * bytes_ + lse_bytes();
  }
  client::AttendRequest ForwardRequest() const;
  absl::Status Forward(int lane, ServerTime* time);
  absl::Status Backward(int lane, ServerTime* time);

  const TransportSetup setup_;
  const size_t bytes_;
  std::vector<float> slopes_;
  std::unique_ptr<client::AttentionClient> client_;
  char* tensors_ = nullptr;
};

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_SERVICE_CALLER_H_
