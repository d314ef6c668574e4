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

  size_t tensor_bytes() const { return bytes_; }  // of each of q, k, v and o
  // Of q, k, v and one o for each lane, in this order.
  size_t total_bytes() const { return (3 + static_cast<size_t>(setup_.lanes)) * bytes_; }
  // That many bytes, which stay the subject's. q, k and v have values.
  void set_tensors(char* tensors) { tensors_ = tensors; }

  // As TransportSubject::Call.
  absl::Status Call(int lane, std::optional<ServerTime>* time);

 private:
  const TransportSetup setup_;
  const size_t bytes_;
  std::vector<float> slopes_;
  std::unique_ptr<client::AttentionClient> client_;
  char* tensors_ = nullptr;
};

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_SERVICE_CALLER_H_
