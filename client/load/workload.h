// The requests that the load generator sends: pre-generated inputs of one shape.
//
// Thread-safety: const after Create, so any thread may read. Ownership: a Workload owns the memory
// that its requests and problems point at.
#ifndef FLASHBIAS_CLIENT_LOAD_WORKLOAD_H_
#define FLASHBIAS_CLIENT_LOAD_WORKLOAD_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/attention_types.h"
#include "client/request_validation.h"
#include "kernels/attention_problem.h"
#include "kernels/dtype.h"

namespace flashbias::client {

struct WorkloadOptions {
  int64_t heads = 50;      // of q; at least 1
  int64_t kv_heads = 0;    // 0: as many as heads
  int64_t head_dim = 32;   // 1 to 128
  int64_t seq_len = 1024;  // keys; at least 1
  int64_t q_len = 0;       // queries, at the end of the keys; 0: seq_len
  DType dtype = DType::kFloat16;
  std::string alibi = "seed";  // "standard", "seed" or "none"
  bool causal = true;
  std::optional<float> eps = {};  // absent: the server's default
  bool want_lse = false;
  int num_inputs = 4;  // sent in turn, so that answers differ; 1 to 64
  uint64_t seed = 1;   // of the standard normal q, k and v
};

class Workload {
 public:
  // INVALID_ARGUMENT: an option is out of its range; the message names its flag.
  static absl::StatusOr<std::unique_ptr<Workload>> Create(const WorkloadOptions& options);
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  int num_inputs() const { return static_cast<int>(inputs_.size()); }
  const AttendRequest& request(int input) const { return inputs_[input]->request; }
  // The same as the backends see it, without o and lse.
  AttentionProblem problem(int input) const;
  // Of each request.
  const RequestSummary& summary() const { return summary_; }

 private:
  struct Input {
    std::string q, k, v;
    AttendRequest request;
  };

  explicit Workload(const WorkloadOptions& options) : options_(options) {}
  void Generate();

  const WorkloadOptions options_;
  std::vector<float> slopes_;
  std::vector<std::unique_ptr<Input>> inputs_;
  RequestSummary summary_;
  Sequence sequence_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_WORKLOAD_H_
